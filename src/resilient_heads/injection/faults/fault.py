"""Faults: what goes wrong where, as frozen values."""

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from resilient_heads.checks import seed_number
from resilient_heads.errors import FaultError
from resilient_heads.injection.faults.draws import Draws
from resilient_heads.injection.faults.effects import BitEffect, Effect, Flip
from resilient_heads.injection.faults.elements import (
    AllElements,
    Elements,
    IndexedElements,
    RandomElements,
    whole,
    whole_numbers,
)
from resilient_heads.injection.faults.fault_model import FaultModel, check_combination
from resilient_heads.injection.faults.targets import Activation, Input, Output, Place, StoredTensor
from resilient_heads.injection.formats.base import NumberFormat
from resilient_heads.injection.formats.dtypes import format_of, word_of
from resilient_heads.injection.random.streams import Indices


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that goes wrong in a tensor of a layer.

    By default one random bit of one random element of the layer's output flips, in each sample another.

    Random choices are a function of ``seed``, the layer, and the sample's number: samples are counted from the
    beginning of the block, so the batch size changes nothing. A sample that passes a layer again is another one.

    Attributes:
        layer: Dotted name of a module, or a pattern with ``*`` and ``?``: for outputs and inputs, every matching
            module without children; for stored tensors, every matching module that has such a tensor. Each tensor
            has its own draws.
        tensor: Which tensor of the layer.
        elements: Which elements of it.
        effect: What happens to each.
        format: The number format that a struck value passes through; None is the tensor's own.
        shared: Strike a word that values share in ``format``; ``elements`` then means groups.
        seed: Of the random choices, ``0 <= seed < 2**64``.

    Raises:
        FaultError: Choices that do not go together.
    """

    layer: str
    tensor: Place = Output()
    elements: Elements = RandomElements()
    effect: Effect = Flip()
    format: NumberFormat | None = None
    shared: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.tensor, Output | Input | StoredTensor):
            raise FaultError(f"Expected Output(), Input() or StoredTensor(), found {self.tensor!r}.")
        check_combination(self.elements, self.effect, self.format, self.shared)
        object.__setattr__(self, "seed", seed_number(self.seed))

    @property
    def model(self) -> FaultModel:
        """The fault without its place; named elements stand for drawn ones."""
        elements = (
            AllElements(fixed=self.elements.fixed) if isinstance(self.elements, IndexedElements) else self.elements
        )
        return FaultModel(elements=elements, effect=self.effect, format=self.format, shared=self.shared)

    @property
    def is_pattern(self) -> bool:
        """Whether the layer is a pattern."""
        return "*" in self.layer or "?" in self.layer

    def matches(self, names: Iterable[str]) -> list[str]:
        """Return the names that the layer, as a pattern, matches."""
        return [name for name in names if fnmatch.fnmatchcase(name, self.layer)]

    def draw(self, stream: str, numbers: Indices, shape: torch.Size, dtype: torch.dtype, what: str) -> Draws:
        """Draw what happens to some samples.

        Args:
            stream: Name of the tensor.
            numbers: ``(R,)``, of the samples.
            shape: Of one sample.
            dtype: Of the tensor.
            what: Named in errors.

        Raises:
            FaultError: An element or a bit that does not exist.
        """
        word_bits, count, model = word_of(dtype)[1], shape.numel(), self.model
        if self.format is None and isinstance(self.effect, BitEffect) and dtype.is_floating_point:
            for bit in self.effect.bits or ():
                format_of(dtype).check(bit)
        if not count:
            raise FaultError(f"{what} is empty: its shape is {tuple(shape)}.")
        if not isinstance(self.elements, IndexedElements):
            return model.draw(self.seed, stream, numbers, neurons=count, word_bits=word_bits)
        within = shape
        if self.shared and self.format is not None:
            within = torch.Size((self.format.groups(count),))
        for index in self.elements.each:
            check_index(index, within, what)
        flat = np.ravel_multi_index(np.array(self.elements.each).T, within) if within else np.zeros(1)
        return model.draw_at(self.seed, stream, numbers, flat.astype(np.int64), neurons=count, word_bits=word_bits)


@dataclass(frozen=True, slots=True, kw_only=True)
class BitFlip:
    """One bit of one output neuron of a layer flips, every time that the layer runs.

    Attributes:
        layer: Dotted name of the module whose output is hit.
        neuron: Index within the output of one sample, without the batch dimension: ``(3,)`` for a Linear,
            ``(channel, row, column)`` for a convolution.
        bit: Position in the word of the output's dtype; 0 is the lowest mantissa bit, the highest is the sign.
        batch_index: Row of the output that is hit; None hits every row, whether rows are images or, where a model folds
            them into the batch, tokens or windows.
    """

    layer: str
    neuron: tuple[int, ...]
    bit: int
    batch_index: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "neuron", whole_numbers("neuron", self.neuron))
        object.__setattr__(self, "bit", whole("bit", self.bit))
        if self.batch_index is not None:
            object.__setattr__(self, "batch_index", whole("batch_index", self.batch_index))

    def as_fault(self) -> Fault:
        """Return the same as a :class:`Fault`."""
        tensor = Output(batch_index=self.batch_index)
        return Fault(
            layer=self.layer,
            tensor=tensor,
            elements=IndexedElements(indices=(self.neuron,)),
            effect=Flip(bits=(self.bit,)),
        )


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
        object.__setattr__(self, "index", whole_numbers("index", self.index))
        object.__setattr__(self, "bit", whole("bit", self.bit))

    def as_fault(self) -> Fault:
        """Return the same as a :class:`Fault`."""
        tensor = StoredTensor(name=self.parameter)
        return Fault(
            layer=self.layer,
            tensor=tensor,
            elements=IndexedElements(indices=(self.index,)),
            effect=Flip(bits=(self.bit,)),
        )


AnyFault = Fault | BitFlip | WeightBitFlip


def is_activation(fault: Fault) -> bool:
    """Whether a fault strikes what passes through a layer, not what it holds."""
    return isinstance(fault.tensor, Activation)


def check_index(index: tuple[int, ...], shape: torch.Size, what: str) -> None:
    """Raise FaultError unless ``index`` names one element of ``shape``."""
    fits = len(index) == len(shape) and all(0 <= i < size for i, size in zip(index, shape, strict=True))
    if not fits:
        raise FaultError(f"{what} has no element {tuple(index)}; its shape is {tuple(shape)}.")
