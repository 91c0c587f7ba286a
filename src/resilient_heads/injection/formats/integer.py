"""Fixed point, and integers with a scale."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from resilient_heads.checks import one_of, whole_number
from resilient_heads.errors import ArgumentError, FaultError
from resilient_heads.injection.formats.base import NumberFormat, finite_maximum, required


@dataclass(frozen=True, kw_only=True)
class FixedPoint(NumberFormat):
    """Fixed point: a sign, integer bits and fraction bits.

    It rounds to nearest, ties to even, and saturates; a NaN becomes 0.

    Attributes:
        integer_bits: Bits before the point, without the sign, 0 to 47.
        fraction_bits: Bits after the point, 0 to 47; both together at most 47.
        sign: ``"twos_complement"``, or ``"magnitude"``, as in GoldenEye's single flips.

    Source: Mahmoud et al., *GoldenEye*, DSN 2022.

    >>> FixedPoint(integer_bits=3, fraction_bits=4).word_bits
    8
    """

    integer_bits: int
    fraction_bits: int
    sign: Literal["twos_complement", "magnitude"] = "twos_complement"

    def __post_init__(self) -> None:
        whole_number("integer_bits", self.integer_bits, least=0, most=47)
        whole_number("fraction_bits", self.fraction_bits, least=0, most=47)
        whole_number("integer_bits + fraction_bits", self.integer_bits + self.fraction_bits, least=1, most=47)
        one_of("sign", self.sign, ("twos_complement", "magnitude"))

    @property
    def word_bits(self) -> int:
        """Bits of a word."""
        return 1 + self.integer_bits + self.fraction_bits

    def encode(self, values: Tensor, shared: Tensor | None = None) -> Tensor:
        """Return the nearest words."""
        top = 1 << (self.word_bits - 1)
        steps = values.nan_to_num(nan=0.0) * 2.0**self.fraction_bits
        if self.sign == "twos_complement":
            return steps.round().clamp(-top, top - 1).to(torch.int64) & (2 * top - 1)
        magnitude = steps.abs().round().clamp(max=top - 1).to(torch.int64)
        return magnitude | torch.where(torch.signbit(values) & ~values.isnan(), top, 0)

    def decode(self, words: Tensor, shared: Tensor | None = None) -> Tensor:
        """Return the values of the words."""
        top = 1 << (self.word_bits - 1)
        low = (words & (top - 1)).to(torch.float64)
        negative = (words & top) != 0
        if self.sign == "twos_complement":
            steps = torch.where(negative, low - top, low)
        else:
            steps = torch.where(negative, -low, low)
        return steps * 2.0**-self.fraction_bits


@dataclass(frozen=True, kw_only=True)
class AffineInteger(NumberFormat):
    """``value = (integer - zero_point) * scale``, as quantised networks store weights and activations.

    Rounds to nearest, ties to even; saturates; a NaN becomes 0. The scale is a float32 word that the values of a
    channel, or of the whole tensor, share.

    Attributes:
        scale: One for all values, one for each channel, or None: the largest finite magnitude of the image (or
            parameter) divided by the largest integer.
        zero_point: The integer that stands for 0.
        width: Bits of the integer, 2 to 32.
        signed: Two's complement; else counted from 0.
        channel: For several scales: whether the channel is the ``"first"`` dimension of an image (as in a
            convolution's output, or the rows of a weight) or the ``"last"`` (as in tokens).

    Source: Jacob et al., *Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference*, CVPR 2018.

    >>> AffineInteger(scale=0.5, width=8).word_bits
    8
    """

    scale: float | tuple[float, ...] | None = None
    zero_point: int = 0
    width: int = 8
    signed: bool = True
    channel: Literal["first", "last"] = "first"

    def __post_init__(self) -> None:
        whole_number("width", self.width, least=2, most=32)
        whole_number("zero_point", self.zero_point, least=self._lowest, most=self._highest)
        if isinstance(self.scale, list):
            object.__setattr__(self, "scale", tuple(self.scale))
        given = torch.tensor(self._given, dtype=torch.float32)
        if self.scale is not None and not (len(given) and bool((given.isfinite() & (given > 0)).all())):
            raise ArgumentError(f"Every scale must be a positive float32 number, found {self.scale}.")
        one_of("channel", self.channel, ("first", "last"))

    @property
    def word_bits(self) -> int:
        """Bits of a word."""
        return self.width

    @property
    def shared_bits(self) -> int:
        """Bits of the scale, a float32."""
        return 32

    @property
    def _lowest(self) -> int:
        return -(1 << (self.width - 1)) if self.signed else 0

    @property
    def _highest(self) -> int:
        return self._lowest + (1 << self.width) - 1

    @property
    def _given(self) -> tuple[float, ...]:
        if isinstance(self.scale, tuple):
            return self.scale
        return () if self.scale is None else (self.scale,)

    def encode(self, values: Tensor, shared: Tensor | None = None) -> Tensor:
        """Return the nearest words."""
        steps = values.nan_to_num(nan=0.0) / _scale(required(shared, self))
        integers = (steps.nan_to_num(nan=0.0).round() + self.zero_point).clamp(self._lowest, self._highest)
        return integers.to(torch.int64) & ((1 << self.width) - 1)

    def decode(self, words: Tensor, shared: Tensor | None = None) -> Tensor:
        """Return the values of the words."""
        wrapped = self.signed & (words > self._highest)
        integers = torch.where(wrapped, words - (1 << self.width), words)
        return (integers - self.zero_point).to(torch.float64) * _scale(required(shared, self))

    def groups(self, count: int) -> int:
        """Return the number of scales."""
        channels = max(len(self._given), 1)
        if count % channels:
            raise FaultError(f"{channels} scales do not divide {count} values evenly; pass one scale for each channel.")
        return channels

    def group_of(self, flat: Tensor, count: int) -> Tensor:
        """Return the channel of each flat index."""
        channels = self.groups(count)
        if self.channel == "last":
            return flat % channels
        return torch.div(flat, count // channels, rounding_mode="floor")

    def fit(self, rows: Tensor) -> Tensor:
        """Return the words of the scales."""
        if self.scale is None:
            largest = finite_maximum(rows)[:, None] / max(self._highest - self.zero_point, 1)
            scale = torch.where(largest > 0, largest, 1.0).to(torch.float32)
            scale = scale.clamp(min=torch.finfo(torch.float32).tiny)
        else:
            self.groups(rows.shape[1])
            scale = torch.tensor(self._given, dtype=torch.float32, device=rows.device).expand(len(rows), -1)
        return scale.contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF


def _scale(word: Tensor) -> Tensor:
    """Return the scales that words encode."""
    return word.to(torch.int32).view(torch.float32).to(torch.float64)
