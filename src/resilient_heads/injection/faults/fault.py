"""Faults as frozen values: what goes wrong, and where."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from resilient_heads.checks import instance_of, seed_number, true_or_false, whole_number
from resilient_heads.errors import ArgumentError, FaultError
from resilient_heads.injection.faults.draws import Draws
from resilient_heads.injection.faults.effects import BitEffect, Effect, Flip, RandomValue, RandomWord
from resilient_heads.injection.faults.elements import (
    AllElements,
    Elements,
    IndexedElements,
    RandomElements,
    whole_numbers,
)
from resilient_heads.injection.faults.fault_model import FaultModel, check_combination
from resilient_heads.injection.faults.targets import Activation, Output, StoredTensor, Target, names_matching
from resilient_heads.injection.formats.base import NumberFormat
from resilient_heads.injection.formats.dtypes import format_of, word_bits_of
from resilient_heads.injection.random.streams import Indices


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A fault in a tensor of a layer. By default one random bit of one random element of the layer's output flips.

    Each image gets draws of its own. They are a function of ``seed``, the layer and the image's number, counted from
    the beginning of the block, so the batch size changes nothing. An image that passes a layer twice counts twice.

    Attributes:
        layer: Dotted name of a module, or a pattern with ``*`` and ``?``. The name of a module means that module. For
            outputs and inputs, a pattern matches modules without children; for stored tensors, modules that hold such a
            tensor. Each tensor gets draws of its own.
        tensor: Which tensor of the layer: :class:`Output`, :class:`Input` or :class:`StoredTensor`.
        elements: Which elements of the tensor.
        effect: What happens to each element.
        format: The number format that a faulty value passes through; None is the tensor's own.
        shared: Inject into a word that values share in ``format``; ``elements`` then means groups of values.
        seed: Seed of the random draws, ``0 <= seed < 2**64``.

    Raises:
        ArgumentError: Choices that do not go together.

    >>> Fault(layer="conv*", effect=Flip(bits=(30,)), seed=3).is_pattern
    True
    """

    layer: str
    tensor: Target = Output()
    elements: Elements = RandomElements()
    effect: Effect = Flip()
    format: NumberFormat | None = None
    shared: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        instance_of("layer", self.layer, str, example='"layer4.0.conv1"')
        object.__setattr__(self, "shared", true_or_false("shared", self.shared))
        if not isinstance(self.tensor, Target):
            raise ArgumentError(f"Expected Output(), Input() or StoredTensor(), found {self.tensor!r}.")
        check_combination(self.elements, self.effect, self.format, self.shared)
        object.__setattr__(self, "seed", seed_number(self.seed))

    @property
    def model(self) -> FaultModel:
        """The fault without its place; all elements stand for named ones."""
        elements = (
            AllElements(fixed=self.elements.fixed) if isinstance(self.elements, IndexedElements) else self.elements
        )
        return FaultModel(elements=elements, effect=self.effect, format=self.format, shared=self.shared)

    @property
    def is_pattern(self) -> bool:
        """Whether the layer is a pattern."""
        return "*" in self.layer or "?" in self.layer

    @property
    def draws_anew(self) -> bool:
        """Whether two images may get different draws."""
        effect = self.effect
        drawn = isinstance(effect, RandomValue | RandomWord) or (isinstance(effect, BitEffect) and effect.bits is None)
        return not self.elements.fixed and (drawn or not isinstance(self.elements, IndexedElements | AllElements))

    def matches(self, names: Iterable[str]) -> list[str]:
        """Return the names that match the layer as a pattern."""
        return names_matching(self.layer, names)

    def draw(self, stream: str, numbers: Indices, shape: torch.Size, dtype: torch.dtype, what: str) -> Draws:
        """Draw what happens to some images.

        Args:
            stream: Name of the stream of random words.
            numbers: ``(R,)``, numbers of the images.
            shape: Shape of one image's part of the tensor.
            dtype: Dtype of the tensor.
            what: What errors call the tensor.

        Raises:
            FaultError: An element or a bit that does not exist.
        """
        word_bits, count, model = word_bits_of(dtype), shape.numel(), self.model
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
            _check_index(index, within, what)
        flat = np.ravel_multi_index(np.array(self.elements.each).T, within) if within else np.zeros(1)
        return model.draw_at(self.seed, stream, numbers, flat.astype(np.int64), neurons=count, word_bits=word_bits)


@dataclass(frozen=True, slots=True, kw_only=True)
class BitFlip:
    """One bit of one output neuron of a layer flips, each time that the layer runs.

    Attributes:
        layer: Dotted name of the module.
        neuron: Index within the output of one image, without the batch dimension: ``(3,)`` for a Linear,
            ``(channel, row, column)`` for a convolution.
        bit: Position in the word of the output's dtype; 0 is the lowest mantissa bit, the highest is the sign.
        batch_index: Row of the batch; None flips the bit in every row. Rows are images, or tokens or windows where a
            model folds those into the batch.

    Raises:
        ArgumentError: An index or bit that is no whole number.

    >>> BitFlip(layer="fc", neuron=(3,), bit=30)
    BitFlip(layer='fc', neuron=(3,), bit=30, batch_index=None)
    """

    layer: str
    neuron: tuple[int, ...]
    bit: int
    batch_index: int | None = None

    def __post_init__(self) -> None:
        instance_of("layer", self.layer, str, example='"layer4.0.conv1"')
        object.__setattr__(self, "neuron", whole_numbers("neuron", self.neuron))
        object.__setattr__(self, "bit", whole_number("bit", self.bit))
        if self.batch_index is not None:
            object.__setattr__(self, "batch_index", whole_number("batch_index", self.batch_index))

    def as_fault(self) -> Fault:
        """Return the same fault as a :class:`Fault`."""
        return Fault(
            layer=self.layer,
            tensor=Output(batch_index=self.batch_index),
            elements=IndexedElements(indices=(self.neuron,)),
            effect=Flip(bits=(self.bit,)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightBitFlip:
    """One bit of one stored parameter flips, and stays flipped until the block ends.

    Attributes:
        layer: Dotted name of the module that holds the parameter.
        index: Index within the parameter.
        bit: Position in the word of the parameter's dtype; 0 is the lowest.
        parameter: Name of the parameter in the module.

    Raises:
        ArgumentError: An index or bit that is no whole number.

    >>> WeightBitFlip(layer="fc", index=(0, 2), bit=30).parameter
    'weight'
    """

    layer: str
    index: tuple[int, ...]
    bit: int
    parameter: str = "weight"

    def __post_init__(self) -> None:
        instance_of("layer", self.layer, str, example='"layer4.0.conv1"')
        object.__setattr__(self, "index", whole_numbers("index", self.index))
        object.__setattr__(self, "bit", whole_number("bit", self.bit))

    def as_fault(self) -> Fault:
        """Return the same fault as a :class:`Fault`."""
        return Fault(
            layer=self.layer,
            tensor=StoredTensor(name=self.parameter),
            elements=IndexedElements(indices=(self.index,)),
            effect=Flip(bits=(self.bit,)),
        )


AnyFault = Fault | BitFlip | WeightBitFlip


def is_activation(fault: Fault) -> bool:
    """Whether a fault lies in what passes through a layer, not in what it holds."""
    return isinstance(fault.tensor, Activation)


def _check_index(index: tuple[int, ...], shape: torch.Size, what: str) -> None:
    """Raise FaultError unless an index names one element of a shape."""
    fits = len(index) == len(shape) and all(0 <= i < size for i, size in zip(index, shape, strict=True))
    if not fits:
        raise FaultError(f"{what} has no element {tuple(index)}; its shape is {tuple(shape)}.")
