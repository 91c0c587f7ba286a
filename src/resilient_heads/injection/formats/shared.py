"""Formats in which values share an exponent or a bias."""

from dataclasses import dataclass

import torch
from torch import Tensor

from resilient_heads.checks import whole_number
from resilient_heads.injection.formats.base import (
    NumberFormat,
    finite_maximum,
    floor_log2,
    required,
    scaled,
)


@dataclass(frozen=True, kw_only=True)
class BlockFloat(NumberFormat):
    """Block floating point: a block shares an exponent; each value is a sign and a magnitude of that exponent.

    The exponent is that of the block's largest finite magnitude; magnitudes hold their leading bit, round to nearest
    (ties to even) and saturate; a NaN becomes 0.

    Attributes:
        exponent_bits: Width of the shared exponent, 2 to 10; biased by ``2**(exponent_bits - 1) - 1``.
        mantissa_bits: Width of a magnitude, with its leading bit.
        block_size: Neighbours, in row-major order, that share an exponent; None makes a whole image, or parameter,
            one block, as GoldenEye does with tensors.

    Source: Mahmoud et al., *GoldenEye*, DSN 2022.

    >>> BlockFloat(mantissa_bits=7, block_size=16).word_bits
    8
    """

    exponent_bits: int = 8
    mantissa_bits: int = 7
    block_size: int | None = None

    def __post_init__(self) -> None:
        whole_number("exponent_bits", self.exponent_bits, least=2, most=10)
        whole_number("mantissa_bits", self.mantissa_bits, least=1, most=52)
        if self.block_size is not None:
            whole_number("block_size", self.block_size, least=1, most=2**40)

    @property
    def word_bits(self) -> int:
        """Bits of a value's word: sign and magnitude."""
        return 1 + self.mantissa_bits

    @property
    def shared_bits(self) -> int:
        """Bits of the shared exponent."""
        return self.exponent_bits

    @property
    def bias(self) -> int:
        """The stored exponent minus the true one."""
        return (1 << (self.exponent_bits - 1)) - 1

    def encode(self, values: Tensor, shared: Tensor | None = None) -> Tensor:
        """Return the nearest words."""
        largest = (1 << self.mantissa_bits) - 1
        step = required(shared, self) - self.bias - (self.mantissa_bits - 1)
        magnitude = scaled(values.nan_to_num(nan=0.0).abs(), -step).round().clamp(max=largest).to(torch.int64)
        return magnitude | torch.where(torch.signbit(values) & ~values.isnan(), largest + 1, 0)

    def decode(self, words: Tensor, shared: Tensor | None = None) -> Tensor:
        """Return the values of the words."""
        step = required(shared, self) - self.bias - (self.mantissa_bits - 1)
        magnitude = words & ((1 << self.mantissa_bits) - 1)
        values = scaled(magnitude.to(torch.float64), step)
        return torch.where(words != magnitude, -values, values)

    def groups(self, count: int) -> int:
        """Return the number of blocks."""
        return 1 if self.block_size is None else -(-count // self.block_size)

    def group_of(self, flat: Tensor, count: int) -> Tensor:
        """Return the block of each flat index."""
        return torch.div(flat, self.block_size or count, rounding_mode="floor")

    def fit(self, rows: Tensor) -> Tensor:
        """Return the stored exponents."""
        count = rows.shape[1]
        size = min(self.block_size or count, count)
        padded = torch.nn.functional.pad(rows, (0, -count % size))
        largest = finite_maximum(padded.reshape(len(rows), -1, size))
        field = torch.where(largest > 0, floor_log2(largest) + self.bias, 0)
        return field.clamp(0, (1 << self.exponent_bits) - 1)


@dataclass(frozen=True, kw_only=True)
class AdaptivFloat(NumberFormat):
    """A float whose exponent bias is chosen for the tensor, so that its largest value just fits.

    There are no subnormals, infinities or NaN: the words of magnitude 0 stand for 0, values beyond the range saturate,
    values below the smallest become 0 or the smallest, whichever is nearer (the smallest from half of it on), and a
    NaN becomes 0.

    Attributes:
        exponent_bits: Width of the exponent, 1 to 8.
        mantissa_bits: Stored mantissa bits.
        bias_bits: Width of the shared bias, two's complement, 2 to 10.

    Source: Tambe et al., *Algorithm-Hardware Co-Design of Adaptive Floating-Point Encodings for Resilient Deep Learning
    Inference*, DAC 2020, algorithm 1.

    >>> AdaptivFloat(exponent_bits=3, mantissa_bits=4).word_bits
    8
    """

    exponent_bits: int = 3
    mantissa_bits: int = 4
    bias_bits: int = 8

    def __post_init__(self) -> None:
        whole_number("exponent_bits", self.exponent_bits, least=1, most=8)
        whole_number("mantissa_bits", self.mantissa_bits, least=1, most=52)
        whole_number("bias_bits", self.bias_bits, least=2, most=10)

    @property
    def word_bits(self) -> int:
        """Bits of a value's word."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def shared_bits(self) -> int:
        """Bits of the shared bias."""
        return self.bias_bits

    def encode(self, values: Tensor, shared: Tensor | None = None) -> Tensor:
        """Return the nearest words."""
        m = self.mantissa_bits
        bias = self._bias(required(shared, self))
        largest = (1 << (self.exponent_bits + m)) - 1
        finite = values.nan_to_num(nan=0.0, posinf=torch.finfo(torch.float64).max)
        finite = finite.abs()
        fraction, above = torch.frexp(finite)
        significand = scaled(fraction, torch.full_like(bias, m + 1)).round().to(torch.int64)
        magnitude = ((above.to(torch.int64) - 1 - bias) << m) + significand - (1 << m)
        smallest = self.decode(torch.ones_like(bias), shared)
        magnitude = magnitude.clamp(1, largest)
        magnitude = torch.where(finite < 0.5 * smallest, 0, magnitude)
        return magnitude | torch.where(torch.signbit(values) & ~values.isnan(), largest + 1, 0)

    def decode(self, words: Tensor, shared: Tensor | None = None) -> Tensor:
        """Return the values of the words."""
        m = self.mantissa_bits
        magnitude = words & ((1 << (self.word_bits - 1)) - 1)
        significand = ((magnitude & ((1 << m) - 1)) + (1 << m)).to(torch.float64)
        values = scaled(significand, (magnitude >> m) + self._bias(required(shared, self)) - m)
        values = torch.where(magnitude == 0, 0.0, values)
        return torch.where(words != magnitude, -values, values)

    def groups(self, count: int) -> int:
        """Return 1: an image, or a parameter, has one bias."""
        return 1

    def group_of(self, flat: Tensor, count: int) -> Tensor:
        """Return 0 for each flat index."""
        return torch.zeros_like(flat)

    def fit(self, rows: Tensor) -> Tensor:
        """Return the stored biases."""
        largest = finite_maximum(rows)
        bias = torch.where(largest > 0, floor_log2(largest) - ((1 << self.exponent_bits) - 1), 0)
        top = 1 << (self.bias_bits - 1)
        return bias.clamp(-top, top - 1)[:, None] & (2 * top - 1)

    def _bias(self, word: Tensor) -> Tensor:
        """Return the biases that words encode."""
        return torch.where(word >= 1 << (self.bias_bits - 1), word - (1 << self.bias_bits), word)
