"""Compare tensors bit by bit."""

import torch
from torch import Tensor

_SIGNED = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def words(tensor: Tensor) -> Tensor:
    """Return the bits of a tensor as integers of the same width, as a view of the same memory.

    Integer and boolean tensors are returned as they are; a complex tensor gets one more dimension, of size 2.

    >>> words(torch.tensor([1.0, -0.0]))
    tensor([ 1065353216, -2147483648], dtype=torch.int32)
    """
    if tensor.dtype.is_complex:
        return words(torch.view_as_real(tensor))
    return tensor.view(_SIGNED[tensor.element_size()]) if tensor.dtype.is_floating_point else tensor


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Return whether two floating tensors have the same shape and bits; all kinds of NaN count as the same.

    >>> same_bits(torch.tensor([0.0, torch.nan]), torch.tensor([0.0, -torch.nan]))
    True
    >>> same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    False
    """
    nan = second.isnan()
    return torch.equal(first.isnan(), nan) and torch.equal(words(first)[~nan], words(second)[~nan])
