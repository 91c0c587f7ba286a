"""Class embeddings: one vector for each class, with a record of how it was made."""

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from resilient_heads.errors import ArgumentError, EmbeddingError
from resilient_heads.files import as_path, write_atomic
from resilient_heads.text.descriptions.texts import NameIndex, check_encodable, check_texts, warn_about_duplicates

_FORMAT = "resilient_heads.class_embeddings/1"
_TENSOR = "vectors"
_RECORD = "resilient_heads"
_HALF_DTYPES = (torch.float16, torch.bfloat16)
_DTYPES = (*_HALF_DTYPES, torch.float32, torch.float64)


def floating_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype; raise ArgumentError if it is not a floating dtype."""
    if dtype not in _DTYPES:
        raise ArgumentError(f"dtype must be a floating dtype such as torch.float32, found {dtype!r:.60}.")
    return dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """How class embeddings were made: enough to make them again.

    Attributes:
        encoder: Name of the text encoder, such as ``"ViT-B-16/openai"``; "unknown" if nobody recorded it.
        encoder_revision: Commit of the encoder, or ``"sha256:..."`` of its weights or of all files in its folder.
        weights_sha256: Hex digest of the file with the encoder's weights; empty if nobody recorded it.
        descriptions_sha256: ``ClassDescriptions.sha256`` of the sentences; empty if there were none.
        pooling: How the sentences of a class became one vector.
        normalized: Whether each sentence's embedding had unit norm before pooling.
    """

    encoder: str = "unknown"
    encoder_revision: str = ""
    descriptions_sha256: str = ""
    pooling: str = "mean"
    normalized: bool = True
    weights_sha256: str = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if type(value) is not type(field.default):
                raise EmbeddingError(
                    f"provenance {field.name} must be a {type(field.default).__name__}, found {value!r:.80}."
                )
            if isinstance(value, str):
                check_encodable(f"provenance {field.name}", value, error=EmbeddingError)

    @classmethod
    def from_dict(cls, record: object) -> Self:
        """Read ``dataclasses.asdict`` of a provenance; raise ValueError if it is something else."""
        expected = {field.name for field in dataclasses.fields(cls)}
        # Older files do not have the digest of the weights.
        if not isinstance(record, dict) or set(record) | {"weights_sha256"} != expected:
            raise ValueError(f"provenance must have the keys {sorted(expected)}")
        return cls(**record)


@dataclass(frozen=True, slots=True, eq=False)
class ClassEmbeddings:
    """One embedding vector for each class, in class order.

    Attributes:
        vectors: ``(C, E)``, floating point, finite, no row all zero. Rows keep their length: the mean of several unit
            vectors is shorter than 1, and a head that normalizes divides by the norm.
        class_names: C names.
        provenance: How the vectors were made.

    Raises:
        EmbeddingError: Vectors and names differ in number, or a vector cannot be used.

    Example:
        >>> import resilient_heads as rh, torch
        >>> embeddings = rh.ClassEmbeddings(torch.eye(2), ("tabby cat", "red fox"))
        >>> embeddings.select(["Red fox"]).vectors
        tensor([[0., 1.]])
    """

    vectors: Tensor
    class_names: tuple[str, ...]
    provenance: Provenance = dataclasses.field(default_factory=Provenance)

    def __post_init__(self) -> None:
        _check_matrix(self.vectors)
        names = check_texts("class_names", self.class_names, example='("cat", "dog")', error=EmbeddingError)
        object.__setattr__(self, "class_names", names)
        object.__setattr__(self, "vectors", self.vectors.detach())
        if 0 in self.vectors.shape or len(names) != len(self.vectors):
            raise EmbeddingError(
                f"{len(names)} class names for {tuple(self.vectors.shape)} vectors; "
                "expected one non-empty vector for each class."
            )
        finite, nonzero = self.vectors.isfinite().all(dim=1), self.vectors.ne(0).any(dim=1)
        for usable, defect in (
            (finite, "contains NaN or Inf; the mean over no description is NaN, so check that the class has one"),
            (nonzero, "is all zeros, so it has no direction"),
        ):
            if not bool(usable.all()):
                position = int(usable.logical_not().nonzero()[0])
                raise EmbeddingError(f"The embedding of class {position} ({names[position]!r}) {defect}.")
        warn_about_duplicates(names)

    def __repr__(self) -> str:
        return (
            f"ClassEmbeddings({self.num_classes} classes, {self.embed_dim} dimensions, "
            f"encoder={self.provenance.encoder!r})"
        )

    @property
    def num_classes(self) -> int:
        """Number of classes, C."""
        return int(self.vectors.shape[0])

    @property
    def embed_dim(self) -> int:
        """Dimension of a vector, E."""
        return int(self.vectors.shape[1])

    def select(self, class_names: Sequence[str]) -> "ClassEmbeddings":
        """Return the embeddings of some classes in the given order, matched by name.

        Raises:
            EmbeddingError: A name matches no class, or several.
        """
        index = NameIndex(self.class_names)
        rows = []
        for name in check_texts("class_names", class_names, example='("cat", "dog")', error=EmbeddingError):
            positions = index.positions(name)
            if len(positions) != 1:
                raise EmbeddingError(f"{name!r} matches {len(positions)} classes of these embeddings, expected one.")
            rows += positions
        return ClassEmbeddings(self.vectors[rows], tuple(class_names), self.provenance)

    def vectors_as(self, dtype: torch.dtype | None) -> Tensor:
        """Return the vectors on the CPU in ``dtype``; None keeps the dtype.

        Raises:
            ArgumentError: ``dtype`` is not a floating dtype.
            EmbeddingError: A vector overflows or becomes all zeros in ``dtype``.
        """
        vectors = self.vectors.to(device="cpu", dtype=None if dtype is None else floating_dtype(dtype))
        if not bool(vectors.isfinite().all()) or not bool(vectors.any(dim=1).all()):
            raise EmbeddingError(f"In {dtype} a vector overflows or becomes all zeros; use dtype=torch.float32.")
        return vectors

    def save(self, path: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> Path:
        """Write a safetensors file.

        Args:
            path: The file.
            dtype: Floating dtype of the stored vectors; None keeps theirs.

        Raises:
            ArgumentError: ``dtype`` is not a floating dtype.
            EmbeddingError: A vector overflows or becomes all zeros in ``dtype``.
        """
        path = as_path(path, "path", error=EmbeddingError)
        record = {
            "format": _FORMAT,
            "class_names": self.class_names,
            "provenance": dataclasses.asdict(self.provenance),
        }
        # The writer shuffles several metadata entries; with a single one, equal content gives equal bytes.
        metadata = {_RECORD: json.dumps(record, sort_keys=True)}
        return write_atomic(path, save_tensors({_TENSOR: self.vectors_as(dtype).contiguous()}, metadata))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file that :meth:`save` wrote. Half-precision vectors are returned as float32.

        Raises:
            EmbeddingError: The file is truncated, or is not a file of class embeddings.
            FileNotFoundError: The file does not exist.
        """
        path = as_path(path, "path", error=EmbeddingError)
        return cls.from_bytes(path.read_bytes(), name=str(path))

    @classmethod
    def from_bytes(cls, content: bytes, *, name: str = "the file") -> Self:
        """Read the content of a file as :meth:`load` does; error messages call the file ``name``."""
        try:
            tensors = load_tensors(content)
            record = _read_record(content)
            if record.get("format") != _FORMAT or set(tensors) != {_TENSOR}:
                raise ValueError(
                    f"expected the format {_FORMAT!r} with one tensor {_TENSOR!r}, found {record.get('format')!r} "
                    f"with {sorted(tensors)}"
                )
            class_names = tuple(record["class_names"])
            provenance = Provenance.from_dict(record["provenance"])
        except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise EmbeddingError(f"{name} is damaged, or is not a file of class embeddings: {error}.") from error
        return cls(_at_least_float32(tensors[_TENSOR]), class_names, provenance)

    @classmethod
    def import_tensor(
        cls, path: str | os.PathLike[str], class_names: Sequence[str], *, provenance: Provenance | None = None
    ) -> Self:
        """Read a ``(C, E)`` tensor from a ``torch.save`` file, which holds the tensor or a dict with one tensor.

        The file is read with ``weights_only=True``, so it cannot run code.

        Args:
            path: The file.
            class_names: C names in the order of the rows.
            provenance: How the vectors were made, if known.

        Raises:
            EmbeddingError: The file holds something else.
            FileNotFoundError: The file does not exist.
        """
        path = as_path(path, "path", error=EmbeddingError)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise
        except Exception as error:  # a damaged pickle can raise any exception
            raise EmbeddingError(f"{path} has no tensor that can be loaded safely: {error}") from error
        values = content.values() if isinstance(content, dict) else [content]
        tensors = [value for value in values if isinstance(value, Tensor)]
        if len(tensors) != 1:
            raise EmbeddingError(f"{path} holds a {type(content).__name__}; expected one tensor (classes, dimensions).")
        return cls(_at_least_float32(tensors[0]), tuple(class_names), provenance or Provenance())


def _check_matrix(vectors: Tensor) -> None:
    """Raise EmbeddingError unless ``vectors`` is a dense floating-point matrix with values."""
    if not isinstance(vectors, Tensor):
        defect = f"found {type(vectors).__name__}"
    elif vectors.ndim != 2:
        defect = f"found shape {tuple(vectors.shape)}"
    elif vectors.dtype not in _DTYPES:
        defect = f"found dtype {vectors.dtype}"
    elif vectors.layout != torch.strided:
        defect = f"found {vectors.layout}; pass vectors.to_dense()"
    elif vectors.is_meta:
        defect = "found one without values, on the meta device"
    else:
        return
    raise EmbeddingError(f"vectors must be a dense floating-point tensor of shape (classes, dimensions), {defect}.")


def _at_least_float32(vectors: Tensor) -> Tensor:
    return vectors.float() if vectors.dtype in _HALF_DTYPES else vectors


def _read_record(content: bytes) -> dict[str, Any]:
    """Read this library's record from a safetensors header, which the safetensors reader has already accepted."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    record = json.loads(header.get("__metadata__", {}).get(_RECORD, "{}"))
    if not isinstance(record, dict):
        raise TypeError("its record is not a JSON object")
    return record
