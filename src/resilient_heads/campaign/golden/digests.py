"""Digests of tensors, models and columns: equal content gives equal digests."""

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor's values."""
    values: NDArray[np.uint8] = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return values.data


def fingerprint(model: nn.Module) -> str:
    """Return the sha256 of a model's state dict: names, shapes, dtypes and every bit."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype};".encode())
            digest.update(tensor_bytes(value))
        else:  # a module's extra state can be any object
            digest.update(f"{name} {value!r};".encode())
    return digest.hexdigest()


def columns_sha256(columns: Mapping[str, NDArray[np.generic]]) -> str:
    """Return the sha256 of columns: names, dtypes and every bit."""
    digest = hashlib.sha256()
    for name, column in columns.items():
        digest.update(f"{name} {column.dtype.str} {len(column)};".encode())
        digest.update(np.ascontiguousarray(column).view(np.uint8).data)
    return digest.hexdigest()
