"""What happens to a struck value."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from resilient_heads.errors import FaultError
from resilient_heads.injection.faults.elements import positive, whole_numbers


@dataclass(frozen=True, kw_only=True)
class BitEffect:
    """Some bits of the word change: named ones, or ``count`` different ones drawn at random.

    Attributes:
        bits: Positions, 0 the lowest; None draws them.
        count: How many are drawn for each element.
        adjacent: Draw a run of neighbours: a burst.
    """

    bits: tuple[int, ...] | None = None
    count: int = 1
    adjacent: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", positive("count", self.count))
        if self.bits is None:
            return
        named = whole_numbers("bits", self.bits if not isinstance(self.bits, int) else (self.bits,))
        if not named or len(set(named)) != len(named):
            raise FaultError(f"bits must name at least one bit, and none twice, found {self.bits!r}.")
        if self.count != 1 or self.adjacent:
            raise FaultError("Give either bits, or count and adjacent, which draw them.")
        object.__setattr__(self, "bits", named)


@dataclass(frozen=True, kw_only=True)
class Flip(BitEffect):
    """The bits change to their opposite."""


@dataclass(frozen=True, kw_only=True)
class StuckAt(BitEffect):
    """The bits are 0, or 1, whatever they should be. Where they are already, the fault is without effect.

    Attributes:
        value: 0 or 1.
    """

    value: Literal[0, 1]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.value not in (0, 1):
            raise FaultError(f"A bit is stuck at 0 or at 1, found {self.value!r}.")


@dataclass(frozen=True, kw_only=True)
class RandomWord:
    """The word becomes a random one: every bit pattern alike, infinities and NaN included."""


class ValueEffect(ABC):
    """The value becomes another, whatever its bits."""

    @abstractmethod
    def replace(self, values: Tensor, uniforms: Tensor, maximum: Tensor) -> Tensor:
        """Return the new values.

        Args:
            values: The struck values, any shape.
            uniforms: A random number in ``[0, 1)`` for each, float64.
            maximum: The largest value of each one's sample, same dtype as ``values``.
        """


@dataclass(frozen=True, kw_only=True)
class RandomValue(ValueEffect):
    """The value becomes a random one, uniform in ``[low, high)``.

    Attributes:
        low: Smallest value.
        high: Upper end.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise FaultError(f"Expected finite low < high, found {self.low!r} and {self.high!r}.")

    def replace(self, values: Tensor, uniforms: Tensor, maximum: Tensor) -> Tensor:
        """Return random values."""
        return (self.low + uniforms * (self.high - self.low)).to(values.dtype)


@dataclass(frozen=True, kw_only=True)
class SetValue(ValueEffect):
    """The value becomes a given one, 0 by default.

    Attributes:
        value: The value; infinities and NaN too.
    """

    value: float = 0.0

    def replace(self, values: Tensor, uniforms: Tensor, maximum: Tensor) -> Tensor:
        """Return the given value."""
        given = torch.full(values.shape, self.value, dtype=torch.float64, device=values.device)
        back = given.to(values.dtype)
        if not values.dtype.is_floating_point and not torch.equal(back.to(torch.float64), given):
            raise FaultError(f"{values.dtype} has no value {self.value}.")
        return back


@dataclass(frozen=True, kw_only=True)
class Negate(ValueEffect):
    """The value changes its sign."""

    def replace(self, values: Tensor, uniforms: Tensor, maximum: Tensor) -> Tensor:
        """Return the values with the other sign, NaN payloads kept."""
        if values.dtype.is_floating_point and values.dtype.itemsize == 1:
            return (-values.float()).to(values.dtype)
        return -values


@dataclass(frozen=True, kw_only=True)
class LayerMaximum(ValueEffect):
    """The value becomes the largest one of the same sample's tensor (or of the parameter); NaN does not count."""

    def replace(self, values: Tensor, uniforms: Tensor, maximum: Tensor) -> Tensor:
        """Return the maxima."""
        return maximum.expand_as(values)


Effect = Flip | StuckAt | RandomWord | RandomValue | SetValue | Negate | LayerMaximum
