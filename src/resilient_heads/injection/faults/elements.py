"""Which elements of a tensor are struck."""

import operator
from collections.abc import Iterable
from dataclasses import dataclass

from resilient_heads.errors import FaultError


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedElements:
    """Elements that are named.

    Attributes:
        indices: An index, ``(3,)`` or ``(channel, row, column)``, or several of them. For inputs and outputs an index
            lies within one sample, without the batch dimension.
        fixed: Draw what an effect leaves to chance once for all samples instead of anew for each.
    """

    indices: tuple[int, ...] | tuple[tuple[int, ...], ...]
    fixed: bool = False

    def __post_init__(self) -> None:
        found = tuple(self.indices) if isinstance(self.indices, Iterable) else (self.indices,)
        nested = found and all(isinstance(one, Iterable) for one in found)
        several = tuple(whole_numbers("index", one) for one in (found if nested else (found,)))  # type: ignore[arg-type]
        if len(set(several)) != len(several):
            raise FaultError(f"An index is named twice in {several}; the second fault would undo the first.")
        object.__setattr__(self, "indices", several)

    @property
    def each(self) -> tuple[tuple[int, ...], ...]:
        """Every index."""
        return self.indices  # type: ignore[return-value]


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomElements:
    """Elements drawn at random, all different.

    Attributes:
        count: How many for each sample (or in the parameter).
        adjacent: Draw a run of neighbours, in row-major order: a burst.
        fixed: Draw once for all samples, as a permanent fault of the hardware does, instead of anew for each.
    """

    count: int = 1
    adjacent: bool = False
    fixed: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", positive("count", self.count))


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRate:
    """Every bit of every element fails by itself, with the same probability: a bit error rate (BER).

    The number of errors is binomial; nothing is rounded, so small layers and low rates are struck as often as they
    should be. Only with effects of single bits: :class:`Flip` or :class:`StuckAt`; one that names bits makes only
    those fail.

    Attributes:
        rate: Probability of each bit.
        fixed: Draw once for all samples instead of anew for each.
    """

    rate: float
    fixed: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise FaultError(f"A bit error rate lies in [0, 1], found {self.rate!r}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class AllElements:
    """All elements of a sample, or of a parameter.

    Attributes:
        fixed: Draw what an effect leaves to chance once for all samples instead of anew for each.
    """

    fixed: bool = False


Elements = IndexedElements | RandomElements | ErrorRate | AllElements


def whole(name: str, value: int) -> int:
    """Return a plain int, or say what was expected."""
    try:
        return operator.index(value)
    except TypeError:
        raise FaultError(f"{name} must be a whole number, found {value!r}.") from None


def positive(name: str, value: int) -> int:
    """Return a plain int of at least 1, or say what was expected."""
    number = whole(name, value)
    if number < 1 or isinstance(value, bool):
        raise FaultError(f"{name} must be a whole number of at least 1, found {value!r}.")
    return number


def whole_numbers(name: str, values: tuple[int, ...]) -> tuple[int, ...]:
    """Return plain ints, or say what was expected."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise FaultError(f"{name} must be a tuple of whole numbers, such as (3,), found {values!r}.")
    return tuple(whole(name, value) for value in values)
