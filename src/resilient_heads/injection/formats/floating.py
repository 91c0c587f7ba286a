"""Floating point with an exponent and a mantissa of any width."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from resilient_heads.checks import one_of, whole_number
from resilient_heads.errors import ArgumentError
from resilient_heads.injection.formats.base import NumberFormat, scaled


@dataclass(frozen=True, kw_only=True)
class FloatingPoint(NumberFormat):
    """Floating point: sign, exponent and mantissa, with subnormals. It rounds to nearest, ties to even.

    ``(5, 10)`` is float16, ``(8, 7)`` bfloat16, ``(8, 23)`` float32, ``(5, 2)`` OCP's E5M2, ``(4, 3)`` with
    ``specials="fn"`` OCP's E4M3, ``(8, 10)`` TensorFloat-32.

    Attributes:
        exponent_bits: 2 to 11.
        mantissa_bits: Stored bits, 1 to 52.
        specials: ``"ieee"`` keeps the highest exponent for infinities and NaN. ``"fn"`` has no infinity and one NaN of
            each sign, the word of all ones. ``"fnuz"`` also has no negative zero, whose word is the only NaN, and its
            bias is larger by 1. ``"none"`` has finite values only: a NaN becomes 0.
        saturate: Values beyond the range become the largest finite value instead of an infinity (or NaN); always so
            for ``"none"``.

    Raises:
        ArgumentError: A width out of range, or unknown specials.

    Source: IEEE 754-2019; *OCP 8-bit Floating Point Specification* 1.0 for ``"fn"``.

    >>> FloatingPoint(exponent_bits=4, mantissa_bits=3, specials="fn").word_bits
    8
    """

    exponent_bits: int
    mantissa_bits: int
    specials: Literal["ieee", "fn", "fnuz", "none"] = "ieee"
    saturate: bool = False

    def __post_init__(self) -> None:
        whole_number("exponent_bits", self.exponent_bits, least=2, most=11)
        whole_number("mantissa_bits", self.mantissa_bits, least=1, most=52)
        one_of("specials", self.specials, ("ieee", "fn", "fnuz", "none"))
        if self.exponent_bits == 11 and self.specials != "ieee":
            raise ArgumentError("An exponent of 11 bits without infinities has values beyond float64; use at most 10.")

    @property
    def word_bits(self) -> int:
        """Bits of a word."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        """The stored exponent minus the true one."""
        return (1 << (self.exponent_bits - 1)) - (0 if self.specials == "fnuz" else 1)

    @property
    def _largest(self) -> int:
        """The word of the largest finite value."""
        ones = (1 << (self.exponent_bits + self.mantissa_bits)) - 1
        if self.specials == "ieee":
            return ones - (1 << self.mantissa_bits)
        return ones - 1 if self.specials == "fn" else ones

    def encode(self, values: Tensor, shared: Tensor | None = None) -> Tensor:
        """Return the nearest words; NaN becomes the format's quiet NaN with its sign."""
        m = self.mantissa_bits
        sign = torch.signbit(values).to(torch.int64) << (self.word_bits - 1)
        fraction, above = torch.frexp(values.abs())
        exponent = above.to(torch.int64) - 1
        below = (1 - self.bias - exponent).clamp(min=0, max=100)
        significand = torch.where(values.isfinite(), scaled(fraction, m + 1 - below), 0).round().to(torch.int64)
        # A carry out of the mantissa increments the exponent, also from subnormal to normal.
        normal = ((exponent + self.bias) << m) + significand - (1 << m)
        magnitude = torch.where((below > 0) | (values == 0), significand, normal)
        overflow = (magnitude > self._largest) | values.isinf()
        magnitude = torch.where(overflow, self._overflowed, magnitude)
        words = sign | magnitude
        if self.specials == "fnuz":
            words = torch.where(magnitude == 0, 0, words)
            nan = torch.full_like(words, 1 << (self.word_bits - 1))
            words = torch.where(overflow & (not self.saturate), nan, words)
        elif self.specials == "none":
            nan = torch.zeros_like(words)
        else:
            quiet = (1 << (m - 1)) | (self._largest + 1) if self.specials == "ieee" else self._largest + 1
            nan = sign | quiet
        return torch.where(values.isnan(), nan, words)

    def decode(self, words: Tensor, shared: Tensor | None = None) -> Tensor:
        """Return the values of the words."""
        m = self.mantissa_bits
        magnitude = words & ((1 << (self.word_bits - 1)) - 1)
        field, mantissa = magnitude >> m, magnitude & ((1 << m) - 1)
        significand = torch.where(field > 0, mantissa + (1 << m), mantissa).to(torch.float64)
        values = scaled(significand, field.clamp(min=1) - self.bias - m)
        negative = words != magnitude
        if self.specials == "ieee":
            top = field == (1 << self.exponent_bits) - 1
            values = torch.where(top, torch.where(mantissa == 0, torch.inf, torch.nan), values)
        elif self.specials == "fn":
            values = torch.where(magnitude > self._largest, torch.nan, values)
        elif self.specials == "fnuz":
            values = torch.where(negative & (magnitude == 0), torch.nan, values)
        return torch.where(negative, -values, values)

    @property
    def _overflowed(self) -> int:
        """The magnitude for values beyond the range: the infinity or NaN after the largest word, if there is one."""
        return self._largest + (self.specials in ("ieee", "fn") and not self.saturate)
