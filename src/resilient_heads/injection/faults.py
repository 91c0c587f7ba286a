"""Fault models: what goes wrong, as frozen values."""

import operator
from collections.abc import Iterable
from dataclasses import dataclass

from resilient_heads.errors import FaultError


@dataclass(frozen=True, slots=True, kw_only=True)
class BitFlip:
    """One bit of one output neuron of a layer flips, every time that the layer runs.

    Attributes:
        layer: Dotted name of the module whose output is hit.
        neuron: Index within the output of one sample, without the batch dimension: ``(3,)`` for a Linear,
            ``(channel, row, column)`` for a convolution.
        bit: Position in the word of the output's dtype; 0 is the lowest mantissa bit, the highest is the sign.
        sample: Row of the output that is hit; None hits every row, whether rows are images or, where a model folds
            them into the batch, tokens or windows.
    """

    layer: str
    neuron: tuple[int, ...]
    bit: int
    sample: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "neuron", _whole_numbers("neuron", self.neuron))
        object.__setattr__(self, "bit", _whole("bit", self.bit))
        if self.sample is not None:
            object.__setattr__(self, "sample", _whole("sample", self.sample))


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightBitFlip:
    """One bit of one stored parameter flips, until it is written again.

    Attributes:
        layer: Dotted name of the module that holds the parameter.
        index: Index within the parameter.
        bit: Position in the word of the parameter's dtype.
        parameter: Name of the parameter in the module.
    """

    layer: str
    index: tuple[int, ...]
    bit: int
    parameter: str = "weight"

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", _whole_numbers("index", self.index))
        object.__setattr__(self, "bit", _whole("bit", self.bit))


def _whole(name: str, value: int) -> int:
    """Return a plain int, or say what was expected."""
    try:
        return operator.index(value)
    except TypeError:
        raise FaultError(f"{name} must be a whole number, found {value!r}.") from None


def _whole_numbers(name: str, values: tuple[int, ...]) -> tuple[int, ...]:
    """Return plain ints, or say what was expected."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise FaultError(f"{name} must be a tuple of whole numbers, such as (3,), found {values!r}.")
    return tuple(_whole(name, value) for value in values)
