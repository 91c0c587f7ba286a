"""Digests of tensors, models and columns: equal content gives equal digests."""

import hashlib
import io
import re
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from resilient_heads.errors import ModelError
from resilient_heads.wrappers import offloaded_value

_CHUNK = 2**22
"""Bytes that are copied at once."""
_ADDRESS = re.compile(r"\b0x[0-9a-f]+\b")


class Digest(Protocol):
    """A digest of :mod:`hashlib`."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Add bytes."""


def add_values(digest: Digest, tensor: Tensor) -> None:
    """Add the bytes of a tensor's values to a digest."""
    values = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().flatten().view(torch.uint8)
    for part in torch.split(values, _CHUNK):
        # A copy, because memory that NumPy has seen can never be resized again, which sharded models do.
        array: NDArray[np.uint8] = part.clone().numpy()
        digest.update(array.data)


def fingerprint(model: nn.Module) -> str:
    """Return the sha256 of everything that a model holds: names, shapes, dtypes and every bit.

    It covers the state dict with packed weights, quantised, sparse and other tensors that keep their values in further
    tensors, and extra state; and buffers that the state dict leaves out.

    Raises:
        ModelError: A tensor has no values, or none that can be read.
    """
    digest = hashlib.sha256()
    state = model.state_dict()
    held = {**state, **{name: buffer for name, buffer in model.named_buffers() if name not in state}}
    for name, shown in held.items():
        offloaded = offloaded_value(model, name) if isinstance(shown, Tensor) and shown.is_meta else None
        value = shown if offloaded is None else offloaded
        try:
            for label, part in _parts(name, value):
                digest.update(label.encode())
                if part is not None:
                    add_values(digest, part)
        except (RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(
                f"The values of {name!r}, a {type(value).__name__}, cannot be read, so a campaign could not tell these "
                "weights from others; convert the tensor to a plain torch.Tensor."
            ) from error
    return digest.hexdigest()


def columns_sha256(columns: Mapping[str, NDArray[np.generic]]) -> str:
    """Return the sha256 of columns: names, dtypes and every bit."""
    digest = hashlib.sha256()
    for name, column in columns.items():
        digest.update(f"{name} {column.dtype.str} {len(column)};".encode())
        digest.update(np.ascontiguousarray(column).view(np.uint8).data)
    return digest.hexdigest()


def _parts(name: str, value: Any) -> Iterator[tuple[str, Tensor | None]]:
    """Yield what a value consists of: texts, each with a plain tensor or None."""
    if isinstance(value, Tensor):
        yield from _parts_of_tensor(name, value)
    elif isinstance(value, Mapping):
        yield f"{name} {len(value)};", None
        for key, item in value.items():
            yield from _parts(f"{name}[{key!r}]", item)
    elif isinstance(value, list | tuple):
        yield f"{name} {len(value)};", None
        for place, item in enumerate(value):
            yield from _parts(f"{name}[{place}]", item)
    elif isinstance(value, torch.ScriptObject) and hasattr(value, "__getstate__"):
        yield from _parts(f"{name}.state", value.__getstate__())
    elif isinstance(value, np.ndarray):
        yield from _parts(f"{name}.values", torch.from_numpy(value.copy()))
    else:  # The extra state of a module can be any object.
        text = value.getvalue() if isinstance(value, io.BytesIO) else value
        yield f"{name} {_ADDRESS.sub('', repr(text))};", None


def _parts_of_tensor(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor | None]]:
    """Yield the plain tensors that a tensor consists of."""
    if tensor.is_meta:
        raise ModelError(f"{name!r} is on the meta device and has no values; load the weights first.")
    if is_lazy(tensor):
        raise ModelError(f"{name!r} has no size yet; run the model once.")
    inner: dict[str, Any] = {}
    described = f"{name} {() if tensor.is_nested else tuple(tensor.shape)} {tensor.dtype}"
    if hasattr(tensor, "__tensor_flatten__"):
        names, context = tensor.__tensor_flatten__()
        inner = {part: getattr(tensor, part) for part in names} | {"context": context}
    elif tensor.is_quantized:
        inner = _parts_of_quantised(tensor)
    elif tensor.is_nested:
        inner = {str(place): part for place, part in enumerate(tensor.unbind())}
    elif tensor.layout != torch.strided:
        inner = _parts_of_sparse(tensor)
    if not inner:
        yield f"{described};", tensor
        return
    yield f"{described} {type(tensor).__name__} {tensor.layout};", None
    for part, value in inner.items():
        yield from _parts(f"{name}.{part}", value)


def _parts_of_quantised(tensor: Tensor) -> dict[str, Any]:
    """Return the integers and the scales of a quantised tensor."""
    inner = {"scheme": tensor.qscheme(), "integers": tensor.int_repr()}
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return inner | {"scale": tensor.q_scale(), "zero_point": tensor.q_zero_point()}
    return inner | {
        "axis": tensor.q_per_channel_axis(),
        "scales": tensor.q_per_channel_scales(),
        "zero_points": tensor.q_per_channel_zero_points(),
    }


def _parts_of_sparse(tensor: Tensor) -> dict[str, Any]:
    """Return the indices and the values of a sparse tensor, or the values of a tensor in another layout."""
    if tensor.layout == torch.sparse_coo:
        return {"indices": tensor._indices(), "values": tensor._values()}
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return {"rows": tensor.crow_indices(), "columns": tensor.col_indices(), "values": tensor.values()}
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return {"columns": tensor.ccol_indices(), "rows": tensor.row_indices(), "values": tensor.values()}
    return {"values": tensor.to_dense()}
