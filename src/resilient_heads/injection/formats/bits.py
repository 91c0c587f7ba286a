"""Bit flips on integer words. No value passes through a Python float, so a signalling NaN keeps its bits."""

import torch
from torch import Tensor

from resilient_heads.injection.formats.dtypes import format_of, word_of


def words(x: Tensor) -> Tensor:
    """Return the integer words behind a floating tensor: a view of the same memory, same shape and strides."""
    return x.view(format_of(x.dtype).word)


def stored_words(x: Tensor) -> Tensor:
    """Return the integer words behind a floating or integer tensor: a view of the same memory."""
    return x.view(word_of(x.dtype)[0])


def apply_masks(held: Tensor, keep: Tensor, flip: Tensor) -> Tensor:
    """Return ``(held AND keep) XOR flip``: every fault of single bits is of this form.

    Args:
        held: Integer words, any shape.
        keep: int64, broadcast against ``held``; bits that are 0 here are cleared first. Its lowest bits count.
        flip: int64, broadcast against ``held``; bits that are 1 here are then flipped.

    >>> apply_masks(torch.tensor([0b1100]), torch.tensor(0b0111), torch.tensor(0b0001)).item()
    5
    """
    return torch.bitwise_xor(torch.bitwise_and(held, keep.to(held.dtype)), flip.to(held.dtype))


def bit_masks(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """Return words with exactly one bit set.

    Args:
        bits: Bit positions, any shape, integers; each must exist in the format.
        dtype: Floating dtype whose words are meant.

    Raises:
        FaultError: A bit that the format does not have.
    """
    form = format_of(dtype)
    if bits.numel():
        form.check(int(bits.min()))
        form.check(int(bits.max()))
    # In 64 bits first: narrowing keeps the low bits, so the sign bit comes out right too.
    return torch.bitwise_left_shift(torch.ones_like(bits, dtype=torch.int64), bits.to(torch.int64)).to(form.word)


def flip_bits(x: Tensor, bits: Tensor | int) -> Tensor:
    """Return ``x`` with one bit flipped in every element.

    Args:
        x: Floating tensor, any shape.
        bits: One position for all elements, or one each (broadcast against ``x``); 0 is the lowest mantissa bit.

    Returns:
        A new tensor like ``x``. Flipping twice gives back every bit, NaN payloads included.

    Raises:
        FaultError: A bit that the format does not have, or a dtype without a known format.

    >>> flip_bits(torch.tensor([0.75]), 30)
    tensor([2.5521e+38])
    """
    positions = torch.as_tensor(bits, device=x.device)
    return torch.bitwise_xor(words(x), bit_masks(positions, x.dtype)).view(x.dtype)
