"""Write and read columns as Parquet. Equal columns give equal bytes. Only this module uses pyarrow.

pyarrow reads a file only after the digest in the file has vouched for every byte: damaged files can make it fail in any
way, such as by asking for more memory than there is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from resilient_heads.campaign.trials.seal import BLANK, is_intact, seal
from resilient_heads.errors import DamagedFileError, ResultError
from resilient_heads.extras import require

_MAGIC = b"PAR1"
_OURS = b"resilient_heads."
_SHA256 = "resilient_heads.sha256"
_MARK = _SHA256.encode() + b"\x18\x40"
"""What stands in front of the digest; the last two bytes announce 64 characters of text."""

_ROW_GROUP = 2**20
_FEW_VALUES = ("site", "image", "bit", "predicted", "rank")
"""Columns with few distinct values, which a dictionary compresses."""

Array = NDArray[np.generic]


@dataclass(frozen=True, slots=True, eq=False)
class Named:
    """A column of names, stored as codes.

    Attributes:
        codes: ``(N,)``, positions in ``names``.
        names: The distinct names.
    """

    codes: Array
    names: Sequence[str]


def encode(columns: Mapping[str, Array | Named], metadata: Mapping[str, str]) -> memoryview:
    """Return a Parquet file.

    Args:
        columns: Columns of the shape ``(N,)`` by name.
        metadata: Further entries of the file.

    Raises:
        ResultError: A code has no name.
        MissingExtraError: pyarrow is not installed.
    """
    pa, pq = require_pyarrow()
    for name, column in columns.items():
        if isinstance(column, Named) and len(column.codes) and int(column.codes.max()) >= len(column.names):
            raise ResultError(
                f"The column {name} holds the code {column.codes.max()}; expected 0 to {len(column.names) - 1}."
            )
    arrays = {
        name: pa.DictionaryArray.from_arrays(pa.array(column.codes.astype(np.int32)), pa.array(list(column.names)))
        if isinstance(column, Named)
        else pa.array(np.ascontiguousarray(column))
        for name, column in columns.items()
    }
    table = pa.table(arrays)
    sink = pa.BufferOutputStream()
    named = [name for name, column in columns.items() if isinstance(column, Named)]
    # Every setting of the writer is given here, so that the bytes depend on the content alone.
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
        writer.add_key_value_metadata({**metadata, _SHA256: BLANK})
    return seal(memoryview(sink.getvalue()).cast("B"), _MARK)


def decode(content: bytes) -> tuple[dict[str, Array | Named], dict[str, str]]:
    """Return the columns and the metadata of a file that :func:`encode` made.

    Raises:
        DamagedFileError: The file is truncated or damaged.
        ResultError: The file is not of this library.
        MissingExtraError: pyarrow is not installed.
    """
    pa, pq = require_pyarrow()
    if not is_intact(content, _MARK):
        raise _refusal(content)
    with pq.ParquetFile(pa.BufferReader(content)) as file:
        table = file.read()
        metadata = {key.decode(): value.decode() for key, value in file.metadata.metadata.items()}
    columns: dict[str, Array | Named] = {}
    for name in table.column_names:
        column = table.column(name)
        if pa.types.is_dictionary(column.type):
            whole = column.unify_dictionaries().combine_chunks()
            parts = whole.chunks if isinstance(whole, pa.ChunkedArray) else [whole]
            codes = [part.indices.to_numpy(zero_copy_only=False) for part in parts]
            names = parts[0].dictionary.to_pylist() if parts else []
            columns[name] = Named(np.concatenate(codes) if codes else np.empty(0, np.int32), names)
        else:
            columns[name] = column.to_numpy()
    return columns, metadata


def _refusal(content: bytes) -> ResultError:
    """Return why content cannot be used: it is damaged, or was never written by this library."""
    if _OURS in content:
        return DamagedFileError("its sha256 differs from the one in the file")
    if content.startswith(_MAGIC) and content.endswith(_MAGIC) and len(content) > len(_MAGIC):
        return ResultError("is not a file of this library")
    if _MAGIC.startswith(content[:4]) or not content.strip(b"\0"):  # a disk that fails leaves zeros
        return DamagedFileError("it is truncated")
    return ResultError("is not a Parquet file")


def require_pyarrow() -> tuple[ModuleType, ModuleType]:
    """Return pyarrow and its Parquet module.

    Raises:
        MissingExtraError: pyarrow is not installed; the message names the extra to install.
    """
    arrow, parquet = (
        require(name, extra="results", purpose="files of trials") for name in ("pyarrow", "pyarrow.parquet")
    )
    return arrow, parquet
