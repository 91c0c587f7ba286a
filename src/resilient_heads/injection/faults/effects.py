"""What happens to an element that a fault is injected into."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Real
from typing import Literal

import torch
from torch import Tensor

from resilient_heads.checks import one_of, real_number, true_or_false, whole_number
from resilient_heads.errors import ArgumentError, FaultError
from resilient_heads.injection.faults.elements import whole_numbers


@dataclass(frozen=True, kw_only=True)
class BitEffect:
    """An effect on some bits of the word: bits that you name, or ``count`` different bits drawn at random.

    Attributes:
        bits: Positions, 0 the lowest; None draws them.
        count: Number of bits to draw for each element.
        adjacent: Draw a run of neighbouring bits, a burst.

    Raises:
        ArgumentError: A bit named twice, no bit, or both named and drawn bits.
    """

    bits: tuple[int, ...] | None = None
    count: int = 1
    adjacent: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", whole_number("count", self.count, least=1))
        object.__setattr__(self, "adjacent", true_or_false("adjacent", self.adjacent))
        if self.bits is None:
            return
        named = whole_numbers("bits", self.bits if not isinstance(self.bits, int) else (self.bits,))
        if not named or len(set(named)) != len(named):
            raise ArgumentError(f"bits must name at least one bit, and none twice, found {self.bits!r}.")
        if self.count != 1 or self.adjacent:
            raise ArgumentError("Give either bits, or count and adjacent, which draw them.")
        object.__setattr__(self, "bits", named)


@dataclass(frozen=True, kw_only=True)
class Flip(BitEffect):
    """Bits change from 0 to 1 and from 1 to 0.

    >>> Flip(count=2, adjacent=True)
    Flip(bits=None, count=2, adjacent=True)
    """


@dataclass(frozen=True, kw_only=True)
class StuckAt(BitEffect):
    """Bits are stuck at 0 or at 1. The fault has no effect on bits that have this value anyway.

    Attributes:
        value: 0 or 1.

    >>> StuckAt(value=1, bits=(3,)).value
    1
    """

    value: Literal[0, 1]

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "value", one_of("value", self.value, (0, 1)))


@dataclass(frozen=True, kw_only=True)
class RandomWord:
    """The word becomes a random word. All bit patterns are equally likely, infinities and NaN included.

    >>> RandomWord()
    RandomWord()
    """


class ValueEffect(ABC):
    """An effect that replaces the value and ignores its bits."""

    @abstractmethod
    def replace(self, values: Tensor, uniforms: Tensor, maximum: Tensor) -> Tensor:
        """Return the new values.

        Args:
            values: The fault-free values, any shape.
            uniforms: A uniform number in ``[0, 1)`` for each value, float64.
            maximum: The largest value of the same image's tensor for each value, same dtype as ``values``.
        """


@dataclass(frozen=True, kw_only=True)
class RandomValue(ValueEffect):
    """The value becomes a random value, uniform in ``[low, high)``.

    Attributes:
        low: Smallest value.
        high: Upper end, above ``low``.

    >>> RandomValue(low=1, high=1)
    Traceback (most recent call last):
    resilient_heads.errors.ArgumentError: high must be a number above 1 and below inf, found 1.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        low = real_number("low", self.low, above=-float("inf"), below=float("inf"))
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", real_number("high", self.high, above=low, below=float("inf")))

    def replace(self, values: Tensor, uniforms: Tensor, maximum: Tensor) -> Tensor:
        """Return random values."""
        return (self.low + uniforms * (self.high - self.low)).to(values.dtype)


@dataclass(frozen=True, kw_only=True)
class SetValue(ValueEffect):
    """The value becomes a given value.

    Attributes:
        value: The value; infinities and NaN are allowed.

    >>> SetValue(value=2.5).replace(torch.zeros(2), torch.zeros(2), torch.zeros(2))
    tensor([2.5000, 2.5000])
    """

    value: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.value, bool) or not isinstance(self.value, Real):
            raise ArgumentError(f"value must be a number, such as 0.0; found {self.value!r}.")
        object.__setattr__(self, "value", float(self.value))

    def replace(self, values: Tensor, uniforms: Tensor, maximum: Tensor) -> Tensor:
        """Return the given value in each place.

        Raises:
            FaultError: An integer dtype that does not have the value.
        """
        given = torch.full(values.shape, self.value, dtype=torch.float64, device=values.device)
        replaced = given.to(values.dtype)
        if not values.dtype.is_floating_point and not torch.equal(replaced.to(torch.float64), given):
            raise FaultError(f"{values.dtype} has no value {self.value}.")
        return replaced


@dataclass(frozen=True, kw_only=True)
class Negate(ValueEffect):
    """The value changes its sign; a NaN keeps its payload.

    >>> Negate().replace(torch.tensor([1.0, -2.0]), torch.zeros(2), torch.zeros(2))
    tensor([-1.,  2.])
    """

    def replace(self, values: Tensor, uniforms: Tensor, maximum: Tensor) -> Tensor:
        """Return the negated values."""
        if values.dtype.is_floating_point and values.dtype.itemsize == 1:
            return (-values.float()).to(values.dtype)
        return -values


@dataclass(frozen=True, kw_only=True)
class LayerMaximum(ValueEffect):
    """The value becomes the largest value of the same image's tensor, or of the parameter; NaN does not count.

    >>> LayerMaximum()
    LayerMaximum()
    """

    def replace(self, values: Tensor, uniforms: Tensor, maximum: Tensor) -> Tensor:
        """Return the maxima."""
        return maximum.expand_as(values)


Effect = Flip | StuckAt | RandomWord | RandomValue | SetValue | Negate | LayerMaximum
