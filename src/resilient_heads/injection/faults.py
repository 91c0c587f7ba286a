"""Fault models: what goes wrong, as frozen values."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BitFlip:
    """One bit of one output neuron of a layer flips, for one forward pass.

    Attributes:
        layer: Dotted name of the module whose output is hit.
        neuron: Index within the output of one sample, without the batch dimension: ``(3,)`` for a Linear,
            ``(channel, row, column)`` for a convolution.
        bit: Position in the word of the output's dtype; 0 is the lowest mantissa bit, the highest is the sign.
        sample: Row of the batch that is hit; None hits every row.
    """

    layer: str
    neuron: tuple[int, ...]
    bit: int
    sample: int | None = None


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
