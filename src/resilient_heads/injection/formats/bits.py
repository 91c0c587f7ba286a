"""Bit flips on integer words. No value passes through a Python float, so a signalling NaN keeps its bits."""

import torch
from torch import Tensor

from resilient_heads.incremental.recording.words import words
from resilient_heads.injection.formats.dtypes import format_of


def apply_masks(held: Tensor, keep: Tensor, flip: Tensor) -> Tensor:
    """Return ``(held AND keep) XOR flip``; every fault in bits has this form.

    Args:
        held: Integer words, any shape.
        keep: int64, broadcast against ``held``. Bits that are 0 in the mask are cleared. Only the low bits count where
            ``held`` is narrower.
        flip: int64, broadcast against ``held``. Bits that are 1 in the mask are then flipped.

    >>> apply_masks(torch.tensor([0b1100]), torch.tensor(0b0111), torch.tensor(0b0001)).item()
    5
    """
    return torch.bitwise_xor(torch.bitwise_and(held, keep.to(held.dtype)), flip.to(held.dtype))


def bit_masks(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """Return words with exactly one bit set.

    Args:
        bits: Bit positions, integers of any shape.
        dtype: Floating dtype that has these bits.

    Raises:
        FaultError: A bit that the dtype does not have.
    """
    number_format = format_of(dtype)
    if bits.numel():
        number_format.check(int(bits.min()))
        number_format.check(int(bits.max()))
    # Shifting in 64 bits and narrowing keeps the low bits, so the sign bit comes out right, too.
    ones = torch.ones_like(bits, dtype=torch.int64)
    return torch.bitwise_left_shift(ones, bits.to(torch.int64)).to(number_format.word)


def flip_bits(values: Tensor, bits: Tensor | int) -> Tensor:
    """Return the values with one bit flipped in each.

    Args:
        values: Floating tensor, any shape.
        bits: One position for all elements, or one for each (broadcast against ``values``); 0 is the lowest mantissa
            bit.

    Returns:
        A new tensor like ``values``. A second flip restores every bit, NaN payloads included.

    Raises:
        FaultError: A bit that the dtype does not have, or a dtype without a known format.

    >>> flip_bits(torch.tensor([0.75]), 30)
    tensor([2.5521e+38])
    """
    positions = torch.as_tensor(bits, device=values.device)
    return torch.bitwise_xor(words(values), bit_masks(positions, values.dtype)).view(values.dtype)


def flip_each_bit(values: Tensor, *, lowest: int = 0) -> Tensor:
    """Return the values with each of their bits flipped, one bit at a time.

    Args:
        values: Floating tensor, any shape.
        lowest: Leave out the bits below this one.

    Returns:
        ``(*values.shape, B)``, one entry for each bit from ``lowest`` to the sign.

    >>> flip_each_bit(torch.tensor([1.0]), lowest=30)
    tensor([[inf, -1.]])
    """
    bits = torch.arange(lowest, format_of(values.dtype).word_bits, device=values.device)
    return torch.bitwise_xor(words(values)[..., None], bit_masks(bits, values.dtype)).view(values.dtype)
