"""Class embeddings: one vector a class, with the record of where it came from."""

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

from resilient_heads.errors import EmbeddingError
from resilient_heads.files import as_path, write_atomic
from resilient_heads.text.descriptions.class_descriptions import (
    is_writable_text,
    normalized_name,
    warn_about_duplicates,
)

_FORMAT = "resilient_heads.class_embeddings/1"
_TENSOR = "vectors"
_RECORD = "resilient_heads"
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where class embeddings came from: enough to make them again.

    Attributes:
        encoder: Name of the text encoder, such as ``"ViT-B-16/openai"``; "unknown" where nobody recorded it.
        encoder_revision: What pins the encoder: a commit, or ``"sha256:..."`` of the weights' file, or of all files of
            a folder.
        weights_sha256: Hex digest of the file with the encoder's weights; empty where nobody recorded it.
        descriptions_sha256: ``ClassDescriptions.sha256`` of the sentences; empty when there were none.
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
        for name in ("encoder", "encoder_revision", "descriptions_sha256", "pooling", "weights_sha256"):
            if not isinstance(getattr(self, name), str):
                raise EmbeddingError(f"provenance {name} must be text, found {getattr(self, name)!r:.80}.")
            if not is_writable_text(getattr(self, name)):
                raise EmbeddingError(f"provenance {name} cannot be written as UTF-8: {getattr(self, name)!r:.80}.")

    @classmethod
    def from_dict(cls, record: object) -> Self:
        """Build a record from what a file holds; ValueError where that is something else."""
        expected = {field.name: type(field.default) for field in dataclasses.fields(cls)}
        # Files from before the weights' digest was recorded are read too.
        if not isinstance(record, dict) or set(record) | {"weights_sha256"} != set(expected):
            raise ValueError(f"provenance must hold {sorted(expected)}")
        for name, kind in expected.items():
            if name in record and type(record[name]) is not kind:
                raise ValueError(f"provenance {name} must be a {kind.__name__}")
        return cls(**record)


@dataclass(frozen=True, slots=True, eq=False)
class ClassEmbeddings:
    """One embedding vector for each class, in class order.

    Attributes:
        vectors: ``(C, E)``, floating point, finite, no row all zero. Rows are stored as pooled: the mean of several
            unit vectors is shorter than one, and the head divides by the norm when it normalises.
        class_names: C names.
        provenance: Where the vectors came from.

    Raises:
        EmbeddingError: The vectors and names do not fit together, or a vector cannot be used.
    """

    vectors: Tensor
    class_names: tuple[str, ...]
    provenance: Provenance = dataclasses.field(default_factory=Provenance)

    def __post_init__(self) -> None:
        if not isinstance(self.vectors, Tensor) or self.vectors.ndim != 2:
            found = tuple(self.vectors.shape) if isinstance(self.vectors, Tensor) else type(self.vectors).__name__
            raise EmbeddingError(f"Class embeddings must be a tensor of shape (classes, dimensions), found {found}.")
        if self.vectors.dtype not in _DTYPES:
            raise EmbeddingError(f"Class embeddings must be floating point, found {self.vectors.dtype}.")
        if self.vectors.layout != torch.strided:
            raise EmbeddingError(
                f"Class embeddings must be a dense tensor, found {self.vectors.layout}; pass vectors.to_dense()."
            )
        if self.vectors.is_meta:
            raise EmbeddingError("Class embeddings must have values, found a tensor on the meta device.")
        _require_names(self.class_names)
        for position, name in enumerate(self.class_names):
            if not is_writable_text(name):
                raise EmbeddingError(f"class_names[{position}] cannot be written as UTF-8: {name!r:.80}.")
        object.__setattr__(self, "class_names", tuple(self.class_names))
        object.__setattr__(self, "vectors", self.vectors.detach())
        if 0 in self.vectors.shape or len(self.class_names) != len(self.vectors):
            raise EmbeddingError(
                f"{len(self.class_names)} class names for {tuple(self.vectors.shape)} vectors; "
                "expected one non-empty vector for each class."
            )
        finite = self.vectors.isfinite().all(dim=1)
        if not bool(finite.all()):
            raise EmbeddingError(
                f"The embedding of class {self._first(~finite)} holds NaN or Inf; "
                "a mean over no description gives NaN: check that each class has one."
            )
        zero = self.vectors.eq(0).all(dim=1)
        if bool(zero.any()):
            raise EmbeddingError(f"The embedding of class {self._first(zero)} is all zeros; it points nowhere.")
        warn_about_duplicates(self.class_names)

    def _first(self, mask: Tensor) -> str:
        """Name the first class that a mask marks."""
        position = int(mask.nonzero()[0])
        return f"{position} ({self.class_names[position]!r})"

    def __repr__(self) -> str:
        return (
            f"ClassEmbeddings({self.num_classes} classes, {self.embed_dim} dimensions, "
            f"encoder={self.provenance.encoder!r})"
        )

    @property
    def num_classes(self) -> int:
        """C."""
        return int(self.vectors.shape[0])

    @property
    def embed_dim(self) -> int:
        """E."""
        return int(self.vectors.shape[1])

    def select(self, class_names: Sequence[str]) -> "ClassEmbeddings":
        """Return the embeddings of some classes, or of all of them in another order, matched by name.

        Raises:
            EmbeddingError: A name is not among the classes, or fits several of them.
        """
        _require_names(class_names)
        exact: dict[str, list[int]] = {}
        forgiving: dict[str, list[int]] = {}
        for row, own in enumerate(self.class_names):
            exact.setdefault(own, []).append(row)
            forgiving.setdefault(normalized_name(own), []).append(row)
        chosen = []
        for name in class_names:
            found = exact.get(name) or forgiving.get(normalized_name(name), [])
            if len(found) != 1:
                what = "is not among the classes" if not found else f"names {len(found)} classes"
                raise EmbeddingError(f"{name!r} {what} of these embeddings.")
            chosen.append(found[0])
        return ClassEmbeddings(self.vectors[chosen], tuple(class_names), self.provenance)

    def save(self, path: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> Path:
        """Write a safetensors file, atomically.

        Args:
            path: The file to write.
            dtype: Store the vectors in this floating dtype; None keeps theirs.

        Raises:
            EmbeddingError: A dtype that is not floating, or in which a vector overflows or becomes all zeros.
        """
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise EmbeddingError(f"dtype must be a floating dtype such as torch.float16, found {dtype!r}.")
        path = as_path(path, "path", error=EmbeddingError)
        vectors = self.vectors.to(device="cpu", dtype=dtype).contiguous()
        if not bool(vectors.isfinite().all()) or not bool(vectors.any(dim=1).all()):
            raise EmbeddingError(f"In {dtype} a vector overflows or becomes all zeros; save them as torch.float32.")
        record = {
            "format": _FORMAT,
            "class_names": self.class_names,
            "provenance": dataclasses.asdict(self.provenance),
        }
        # One metadata entry: the format's writer shuffles several, and equal content should be equal bytes.
        metadata = {_RECORD: json.dumps(record, sort_keys=True)}
        return write_atomic(path, save_tensors({_TENSOR: vectors}, metadata))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what :meth:`save` wrote; half-precision vectors come back as float32.

        Raises:
            EmbeddingError: The file is truncated, foreign, or holds something else than class embeddings.
            FileNotFoundError: There is no such file.
        """
        path = as_path(path, "path", error=EmbeddingError)
        return cls.from_bytes(path.read_bytes(), name=str(path))

    @classmethod
    def from_bytes(cls, content: bytes, *, name: str = "the file") -> Self:
        """Read the content of a file that :meth:`save` wrote; ``name`` is what errors call it."""
        try:
            tensors = load_tensors(content)
            record = _record(content)
        except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise EmbeddingError(f"{name} is not a file of class embeddings, or is truncated: {error}.") from error
        if record.get("format") != _FORMAT or set(tensors) != {_TENSOR}:
            raise EmbeddingError(
                f"{name} holds no class embeddings: expected the format {_FORMAT!r} with one tensor {_TENSOR!r}, "
                f"found {record.get('format')!r} with {sorted(tensors)}."
            )
        try:
            class_names = record["class_names"]
            provenance = Provenance.from_dict(record["provenance"])
            if not isinstance(class_names, list):
                raise TypeError("class_names must be a list")
        except (KeyError, TypeError, ValueError) as error:
            raise EmbeddingError(f"The metadata of {name} is damaged: {error}.") from error
        vectors = tensors[_TENSOR]
        if vectors.dtype in (torch.float16, torch.bfloat16):
            vectors = vectors.float()
        return cls(vectors, tuple(class_names), provenance)

    @classmethod
    def import_tensor(
        cls, path: str | os.PathLike[str], class_names: Sequence[str], *, provenance: Provenance | None = None
    ) -> Self:
        """Read a ``(C, E)`` tensor that somebody wrote with ``torch.save``, alone or as the one tensor of a dict.

        Nothing in the file is executed (``weights_only``).

        Args:
            path: The file.
            class_names: C names in the order of the rows, which the file does not know.
            provenance: Where the vectors came from, as far as that is known.

        Raises:
            EmbeddingError: The file holds something else.
            FileNotFoundError: There is no such file.
        """
        path = as_path(path, "path", error=EmbeddingError)
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise
        except Exception as error:  # a damaged pickle raises anything
            raise EmbeddingError(f"{path} holds no tensor that can be loaded safely: {error}") from error
        tensors = (
            [value for value in found.values() if isinstance(value, Tensor)] if isinstance(found, dict) else [found]
        )
        if len(tensors) != 1 or not isinstance(tensors[0], Tensor):
            raise EmbeddingError(f"{path} holds a {type(found).__name__}; expected one tensor (classes, dimensions).")
        vectors = tensors[0]
        if vectors.dtype in (torch.float16, torch.bfloat16):
            vectors = vectors.float()
        return cls(vectors, tuple(class_names), provenance or Provenance())


def _require_names(class_names: Sequence[str]) -> None:
    """Refuse what is no sequence of names."""
    if isinstance(class_names, str) or not isinstance(class_names, Sequence):
        raise EmbeddingError(f'class_names must be a sequence such as ("cat", "dog"), found {class_names!r:.60}.')
    odd = [name for name in class_names if not isinstance(name, str)]
    if odd:
        raise EmbeddingError(f"class_names must be a sequence of strings; one of them is {odd[0]!r:.60}.")


def _record(content: bytes) -> dict[str, Any]:
    """Read our record out of a safetensors header that the format's own reader has accepted."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    record = json.loads(header.get("__metadata__", {}).get(_RECORD, "{}"))
    if not isinstance(record, dict):
        raise TypeError("its record is no JSON object")
    return record
