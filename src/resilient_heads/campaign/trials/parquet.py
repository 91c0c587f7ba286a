"""Columns in Parquet: the one place that knows pyarrow. Equal columns give equal bytes."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from resilient_heads.errors import ResultError
from resilient_heads.extras import require

MAGIC = b"PAR1"
_ROW_GROUP = 2**20
_FEW_VALUES = ("site", "image", "bit", "predicted", "rank")
"""Columns that a dictionary makes small; it does nothing for floats, neurons and running numbers."""

Array = NDArray[np.generic]


@dataclass(frozen=True, slots=True, eq=False)
class Named:
    """A column of few values that readers see by name.

    Attributes:
        codes: ``(N,)``, positions in ``names``.
        names: What the codes mean, each once.
    """

    codes: Array
    names: Sequence[str]


def encode(columns: Mapping[str, Array | Named], metadata: Mapping[str, str]) -> memoryview:
    """Return a Parquet file.

    Args:
        columns: Each of the shape ``(N,)``.
        metadata: What the file says beside its columns.

    Raises:
        ResultError: A code without a name.
        MissingExtraError: pyarrow is not installed.
    """
    pa, pq = _pyarrow()
    for name, column in columns.items():
        if isinstance(column, Named) and len(column.codes) and int(column.codes.max()) >= len(column.names):
            raise ResultError(f"The column {name} holds {column.codes.max()}, which means nothing.")
    arrays = {
        name: pa.DictionaryArray.from_arrays(pa.array(column.codes.astype(np.int32)), pa.array(list(column.names)))
        if isinstance(column, Named)
        else pa.array(np.ascontiguousarray(column))
        for name, column in columns.items()
    }
    table = pa.table(arrays)
    sink = pa.BufferOutputStream()
    named = [name for name, column in columns.items() if isinstance(column, Named)]
    # All that could change from release to release is pinned, so that the bytes depend on the content.
    with pq.ParquetWriter(
        sink,
        table.schema,
        version="2.6",
        data_page_version="1.0",
        compression="zstd",
        compression_level=3,
        use_dictionary=[*named, *(name for name in _FEW_VALUES if name in columns)],
        write_statistics=True,
        store_schema=True,
    ) as writer:
        writer.write_table(table, row_group_size=_ROW_GROUP)
        writer.add_key_value_metadata(dict(metadata))
    return memoryview(sink.getvalue()).cast("B")  # unsigned, so that it equals the same bytes


def decode(content: bytes) -> tuple[dict[str, Array | Named], dict[str, str]]:
    """Return the columns and the metadata of a Parquet file.

    Raises:
        ResultError: It is truncated, damaged, or no Parquet file.
        MissingExtraError: pyarrow is not installed.
    """
    pa, pq = _pyarrow()
    try:
        with pq.ParquetFile(pa.BufferReader(content)) as file:
            table = file.read()
            metadata = {key.decode(): value.decode() for key, value in (file.metadata.metadata or {}).items()}
        columns: dict[str, Array | Named] = {}
        for name in table.column_names:
            column = table.column(name)
            if column.null_count:
                raise ValueError(f"the column {name} has empty places")
            if pa.types.is_dictionary(column.type):
                whole = column.unify_dictionaries().combine_chunks()
                parts = whole.chunks if isinstance(whole, pa.ChunkedArray) else [whole]
                codes = [part.indices.to_numpy(zero_copy_only=False) for part in parts]
                names = parts[0].dictionary.to_pylist() if parts else []
                columns[name] = Named(np.concatenate(codes) if codes else np.empty(0, np.int32), names)
            else:
                columns[name] = column.to_numpy()
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise ResultError(f"not a whole Parquet file: {' '.join(str(error).split())}") from error
    return columns, metadata


def digest(columns: Mapping[str, Array]) -> str:
    """Return the sha256 of columns: names, types and every bit."""
    found = hashlib.sha256()
    for name, column in columns.items():
        found.update(f"{name} {column.dtype.str} {len(column)};".encode())
        found.update(np.ascontiguousarray(column).view(np.uint8).data)
    return found.hexdigest()


def _pyarrow() -> tuple[ModuleType, ModuleType]:
    """Import pyarrow and its Parquet module, or say how to install them."""
    purpose = "files of trials"
    return require("pyarrow", extra="results", purpose=purpose), require(
        "pyarrow.parquet", extra="results", purpose=purpose
    )
