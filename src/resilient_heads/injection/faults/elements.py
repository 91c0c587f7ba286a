"""Which elements of a tensor a fault is injected into."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from resilient_heads.checks import real_number, true_or_false, whole_number
from resilient_heads.errors import ArgumentError


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedElements:
    """Elements that you name.

    Attributes:
        indices: One index, ``(3,)`` or ``(channel, row, column)``, or a tuple of several. In outputs and inputs, an
            index lies within one image and leaves out the batch dimension.
        fixed: Draw the random parts of an effect once for all images, not anew for each.

    Raises:
        ArgumentError: An index that is no tuple of whole numbers, or an index that is named twice.

    >>> IndexedElements(indices=(3, 1)).each
    ((3, 1),)
    """

    indices: tuple[int, ...] | tuple[tuple[int, ...], ...]
    fixed: bool = False

    def __post_init__(self) -> None:
        given = tuple(self.indices) if isinstance(self.indices, Iterable) else (self.indices,)
        nested = given and all(isinstance(one, Iterable) for one in given)
        indices = tuple(whole_numbers("index", one) for one in (given if nested else (given,)))
        if len(set(indices)) != len(indices):
            raise ArgumentError(
                f"An index is named twice in {indices}, so one fault would undo the other; name it once."
            )
        object.__setattr__(self, "indices", indices)
        object.__setattr__(self, "fixed", true_or_false("fixed", self.fixed))

    @property
    def each(self) -> tuple[tuple[int, ...], ...]:
        """All indices, each as a tuple."""
        return self.indices  # type: ignore[return-value]


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomElements:
    """Elements that are drawn at random, all different.

    Attributes:
        count: Number of elements in each image, or in the parameter.
        adjacent: Draw a run of neighbours in row-major order, a burst.
        fixed: Draw once for all images, as for a permanent hardware fault, not anew for each.

    >>> RandomElements(count=0)
    Traceback (most recent call last):
    resilient_heads.errors.ArgumentError: count must be a whole number of at least 1, found 0.
    """

    count: int = 1
    adjacent: bool = False
    fixed: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", whole_number("count", self.count, least=1))
        object.__setattr__(self, "adjacent", true_or_false("adjacent", self.adjacent))
        object.__setattr__(self, "fixed", true_or_false("fixed", self.fixed))


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRate:
    """Elements with a bit error rate (BER): every bit of every element fails independently, with one probability.

    The number of errors is binomial and nothing is rounded, so small layers and low rates get as many errors as they
    should. ``ErrorRate`` needs an effect of single bits, :class:`Flip` or :class:`StuckAt`; if the effect names bits,
    only those bits can fail.

    Attributes:
        rate: Probability of an error in each bit, from 0 to 1.
        fixed: Draw once for all images, not anew for each.

    >>> ErrorRate(rate=1e-6)
    ErrorRate(rate=1e-06, fixed=False)
    """

    rate: float
    fixed: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate", real_number("rate", self.rate, least=0, most=1))
        object.__setattr__(self, "fixed", true_or_false("fixed", self.fixed))


@dataclass(frozen=True, slots=True, kw_only=True)
class AllElements:
    """All elements of an image's tensor, or of a parameter.

    Attributes:
        fixed: Draw the random parts of an effect once for all images, not anew for each.

    >>> AllElements()
    AllElements(fixed=False)
    """

    fixed: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "fixed", true_or_false("fixed", self.fixed))


Elements = IndexedElements | RandomElements | ErrorRate | AllElements


def whole_numbers(name: str, values: Any) -> tuple[int, ...]:
    """Return whole numbers as a tuple of plain ints.

    Raises:
        ArgumentError: Something else than a sequence of whole numbers.
    """
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ArgumentError(f"{name} must be a tuple of whole numbers, such as (3,), found {values!r}.")
    return tuple(whole_number(name, value) for value in values)
