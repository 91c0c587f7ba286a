"""How the bits of torch's dtypes divide into sign, exponent and mantissa."""

from dataclasses import dataclass
from typing import Literal

import torch

from resilient_heads.errors import FaultError

BitRole = Literal["mantissa", "exponent", "sign"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatFormat:
    """A binary format of sign, exponent and mantissa; bit 0 is the lowest mantissa bit.

    Attributes:
        dtype: The torch dtype.
        word: The signed integer dtype of the same width; faults act on it.
        word_bits: Bits of a word.
        mantissa_bits: Stored mantissa bits.
    """

    dtype: torch.dtype
    word: torch.dtype
    word_bits: int
    mantissa_bits: int

    @property
    def exponent_bits(self) -> int:
        """Bits of the exponent."""
        return self.word_bits - self.mantissa_bits - 1

    def role(self, bit: int) -> BitRole:
        """Return the field that a bit belongs to.

        >>> format_of(torch.float32).role(30)
        'exponent'
        """
        self.check(bit)
        if bit == self.word_bits - 1:
            return "sign"
        return "exponent" if bit >= self.mantissa_bits else "mantissa"

    def check(self, bit: int) -> None:
        """Raise FaultError unless the word has the bit."""
        if not 0 <= bit < self.word_bits:
            raise FaultError(
                f"Bit {bit} does not exist in {self.dtype}; expected 0 (lowest) to {self.word_bits - 1} (sign)."
            )


_FORMATS = {
    known.dtype: known
    for known in (
        FloatFormat(dtype=torch.float16, word=torch.int16, word_bits=16, mantissa_bits=10),
        FloatFormat(dtype=torch.bfloat16, word=torch.int16, word_bits=16, mantissa_bits=7),
        FloatFormat(dtype=torch.float32, word=torch.int32, word_bits=32, mantissa_bits=23),
        FloatFormat(dtype=torch.float64, word=torch.int64, word_bits=64, mantissa_bits=52),
        FloatFormat(dtype=torch.float8_e4m3fn, word=torch.int8, word_bits=8, mantissa_bits=3),
        FloatFormat(dtype=torch.float8_e5m2, word=torch.int8, word_bits=8, mantissa_bits=2),
        FloatFormat(dtype=torch.float8_e4m3fnuz, word=torch.int8, word_bits=8, mantissa_bits=3),
        FloatFormat(dtype=torch.float8_e5m2fnuz, word=torch.int8, word_bits=8, mantissa_bits=2),
    )
}

_INTEGERS = {torch.int8: 8, torch.uint8: 8, torch.int16: 16, torch.int32: 32, torch.int64: 64}


def format_of(dtype: torch.dtype) -> FloatFormat:
    """Return the format of a floating dtype.

    Raises:
        FaultError: A dtype whose bits cannot be flipped.

    Source: IEEE 754-2019 for float16, float32 and float64; bfloat16 is float32 without its 16 lowest bits; *OCP 8-bit
    Floating Point Specification* 1.0 for float8_e4m3fn and float8_e5m2.
    """
    try:
        return _FORMATS[dtype]
    except KeyError:
        known = ", ".join(str(known) for known in _FORMATS)
        raise FaultError(f"Cannot flip bits of {dtype}; supported are {known}.") from None


def word_bits_of(dtype: torch.dtype) -> int:
    """Return the bits of one element of a floating or integer dtype.

    Raises:
        FaultError: A dtype whose bits cannot be flipped.
    """
    return _INTEGERS[dtype] if dtype in _INTEGERS else format_of(dtype).word_bits
