"""Fault models: which elements of a tensor fail, what happens to them, through which number format."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from resilient_heads.errors import FaultError
from resilient_heads.injection.faults.draws import Draws, TensorContext
from resilient_heads.injection.faults.effects import (
    BitEffect,
    Effect,
    Flip,
    LayerMaximum,
    RandomValue,
    RandomWord,
    StuckAt,
)
from resilient_heads.injection.faults.elements import AllElements, ErrorRate, RandomElements
from resilient_heads.injection.faults.ranges import RangeDetector, apply_range
from resilient_heads.injection.formats.base import NumberFormat
from resilient_heads.injection.formats.bits import apply_masks, stored_words
from resilient_heads.injection.formats.dtypes import word_of
from resilient_heads.injection.random.elements import draw_elements, draw_errors
from resilient_heads.injection.random.streams import Indices, Masks
from resilient_heads.injection.random.words import draw_bits, draw_uniforms, draw_words


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultModel:
    """What one trial does to one tensor. By default one bit of one element flips, both drawn uniformly.

    Attributes:
        elements: Which elements of a sample are struck.
        effect: What happens to each.
        format: The number format that a struck value passes through: encoded, struck as a word, decoded. Values that
            are not struck stay as they are. None takes the tensor's own format.
        shared: Strike the word that a group of values shares in ``format`` (the exponent of a block, the bias of an
            AdaptivFloat, a scale) instead of a value: ``elements`` then draws groups, and all values of a group
            decode anew.

    Raises:
        FaultError: Choices that do not go together.
    """

    elements: RandomElements | ErrorRate | AllElements = RandomElements()
    effect: Effect = Flip()
    format: NumberFormat | None = None
    shared: bool = False

    def __post_init__(self) -> None:
        check_combination(self.elements, self.effect, self.format, self.shared)

    @property
    def needs_context(self) -> bool:
        """Whether :meth:`corrupt` needs what :meth:`context` gives."""
        return isinstance(self.effect, LayerMaximum) or (self.format is not None and self.format.shared_bits > 0)

    def draw(self, seed: int, stream: str, trials: Indices, *, neurons: int, word_bits: int) -> Draws:
        """Draw what each trial does: a pure function of (seed, stream, trial), whatever the batch.

        Args:
            seed: ``0 <= seed < 2**64``.
            stream: Name of what is struck, as the layer's.
            trials: ``(N,)``, int64, numbers of the trials.
            neurons: Elements of one sample.
            word_bits: Width of the tensor's own words; a ``format`` has its own.

        Raises:
            FaultError: More elements or bits are asked for than there are, or a bit that the word lacks.
        """
        own = np.zeros_like(trials) if self.elements.fixed else trials
        population, width = neurons, word_bits
        if self.format is not None:
            width = self.format.shared_bits if self.shared else self.format.word_bits
            population = self.format.groups(neurons) if self.shared else neurons
        if isinstance(self.elements, ErrorRate):
            drawn = self._errors(seed, stream, own, population, width)
        else:
            drawn = self.draw_effect(seed, stream, own, self._elements(seed, stream, own, population), word_bits=width)
        return self._spread(drawn, neurons) if self.shared else drawn

    def draw_at(
        self, seed: int, stream: str, trials: Indices, chosen: Indices, *, neurons: int, word_bits: int
    ) -> Draws:
        """Draw what happens to named elements: ``chosen (K,)``, flat indices, or groups for shared words."""
        trials = np.zeros_like(trials) if self.elements.fixed else trials
        each = np.tile(chosen, (len(trials), 1))
        if self.format is None:
            return self.draw_effect(seed, stream, trials, each, word_bits=word_bits)
        if not self.shared:
            return self.draw_effect(seed, stream, trials, each, word_bits=self.format.word_bits)
        return self._spread(self.draw_effect(seed, stream, trials, each, word_bits=self.format.shared_bits), neurons)

    def draw_effect(self, seed: int, stream: str, trials: Indices, neurons: Indices, *, word_bits: int) -> Draws:
        """Draw what happens to elements that are known: ``neurons (N, K)`` and words of ``word_bits``."""
        elements, effect = neurons.shape[1], self.effect
        ones = np.full(neurons.shape, ~np.uint64(0))
        nothing = np.zeros_like(ones)
        if isinstance(effect, BitEffect):
            if effect.bits is not None:
                masks = np.full(neurons.shape, named_mask(effect.bits, word_bits))
            else:
                masks = draw_bits(
                    seed,
                    stream,
                    trials,
                    elements=elements,
                    word_bits=word_bits,
                    count=effect.count,
                    adjacent=effect.adjacent,
                )
            return Draws.of_masks(neurons, *_masks(effect, masks))
        if isinstance(effect, RandomWord):
            words = draw_words(seed, stream, trials, elements=elements)
            low = np.uint64((1 << word_bits) - 1)
            return Draws.of_masks(neurons, ~np.full_like(words, low), words & low)
        draws = Draws.of_masks(neurons, ones, nothing)
        if isinstance(effect, RandomValue):
            uniforms = draw_uniforms(seed, stream, trials, elements=elements)
            return Draws(neurons, draws.keep, draws.flip, uniforms)
        return draws

    def context(self, rows: Tensor, draws: Draws) -> TensorContext:
        """Look at the fault-free tensor.

        Args:
            rows: ``(N, neurons)``, the samples of N trials, fault-free.
            draws: Of the same trials.
        """
        shared = maximum = None
        if self.format is not None and self.format.shared_bits:
            neurons = torch.from_numpy(draws.neurons).to(rows.device).clamp(min=0)
            group = self.format.group_of(neurons, rows.shape[1])
            shared = self.format.fit(rows.detach().to(torch.float64)).gather(1, group)
        if isinstance(self.effect, LayerMaximum):
            wide = rows.detach().to(torch.float64)
            maximum = wide.masked_fill(wide.isnan(), -torch.inf).amax(dim=1, keepdim=True).to(rows.dtype)
        return TensorContext(shared, maximum)

    def corrupt(
        self,
        values: Tensor,
        draws: Draws,
        *,
        context: TensorContext | None = None,
        range_limit: float | None = None,
        detector: RangeDetector = "clamp",
    ) -> Tensor:
        """Return the values after the fault; pure.

        Args:
            values: ``(N, K)``, the fault-free values at ``draws.neurons`` (anything where that is -1).
            draws: Of the same N trials.
            context: From :meth:`context`, if :attr:`needs_context`.
            range_limit: Range of the layer for the detector; None for none.
            detector: What becomes of values beyond the range.

        Returns:
            ``(N, K)``, the dtype of ``values``; where no element is struck, the value as it was.

        Raises:
            FaultError: The context is needed and missing.
        """
        if self.needs_context and context is None:
            raise FaultError("This fault model needs context=; get it from FaultModel.context().")
        context = context or TensorContext()
        values = values.detach()
        self._check_width(draws, values)
        keep, flip, uniforms = (
            torch.from_numpy(drawn).to(values.device) for drawn in (draws.keep, draws.flip, draws.uniforms)
        )
        masked = isinstance(self.effect, BitEffect | RandomWord)
        if self.format is None and masked:
            after = apply_masks(stored_words(values), keep, flip).view(values.dtype)
        elif self.format is None:
            after = self._replaced(values, uniforms, context)
        else:
            before = values if masked else self._replaced(values, uniforms, context)
            words = self.format.encode(before.to(torch.float64), context.shared)
            shared = context.shared
            if self.shared and shared is not None:
                shared = apply_masks(shared, keep, flip)
            elif masked:
                words = apply_masks(words, keep, flip)
            after = self.format.decode(words, shared).to(values.dtype)
        after = apply_range(after, range_limit, detector)
        # As words, so that the bits of a NaN that is not struck stay.
        struck = torch.from_numpy(draws.neurons).to(values.device) >= 0
        return torch.where(struck, stored_words(after.contiguous()), stored_words(values)).view(values.dtype)

    def _check_width(self, draws: Draws, values: Tensor) -> None:
        """Raise FaultError if a bit was drawn that the word does not have, as when the dtype is another one."""
        width = word_of(values.dtype)[1]
        if self.format is not None:
            width = self.format.shared_bits if self.shared else self.format.word_bits
        touched = draws.flip.view(np.uint64) | ~draws.keep.view(np.uint64)
        struck = touched[draws.neurons >= 0]
        if isinstance(self.effect, RandomWord):  # which clears what lies above the word, too
            struck = draws.flip.view(np.uint64)[draws.neurons >= 0]
        named_mask((max(int(struck.max(initial=0)).bit_length() - 1, 0),), width)

    def _replaced(self, values: Tensor, uniforms: Tensor, context: TensorContext) -> Tensor:
        """Return the values that an effect on values puts in their place."""
        effect = self.effect
        assert not isinstance(effect, BitEffect | RandomWord)
        maximum = values if context.maximum is None else context.maximum
        return effect.replace(values, uniforms, maximum)

    def _elements(self, seed: int, stream: str, trials: Indices, population: int) -> Indices:
        if isinstance(self.elements, RandomElements):
            count, adjacent = self.elements.count, self.elements.adjacent
            return draw_elements(seed, stream, trials, population=population, count=count, adjacent=adjacent)
        return np.broadcast_to(np.arange(population), (len(trials), population)).copy()

    def _errors(self, seed: int, stream: str, trials: Indices, population: int, width: int) -> Draws:
        """Draw single bits that fail, and gather those of the same word."""
        assert isinstance(self.elements, ErrorRate)
        assert isinstance(self.effect, BitEffect)
        named = self.effect.bits or tuple(range(width))
        named_mask(named, width)
        places = draw_errors(seed, stream, trials, population=population * len(named), rate=self.elements.rate)
        hit = places >= 0
        words = np.where(hit, places // len(named), -1)
        bits = np.uint64(1) << np.array(named, dtype=np.uint64)[np.where(hit, places % len(named), 0)]
        fresh = hit & np.diff(words, axis=1, prepend=-1).astype(bool)
        column = np.cumsum(fresh, axis=1) - 1
        neurons = np.full((len(trials), int(fresh.sum(axis=1).max(initial=0))), -1, dtype=np.int64)
        masks = np.zeros(neurons.shape, dtype=np.uint64)
        rows = np.nonzero(hit)[0]
        neurons[rows, column[hit]] = words[hit]
        np.bitwise_or.at(masks, (rows, column[hit]), bits[hit])
        return Draws.of_masks(neurons, *_masks(self.effect, masks))

    def _spread(self, draws: Draws, count: int) -> Draws:
        """Turn strikes on groups into strikes on all of their values."""
        assert self.format is not None
        trials, size = draws.neurons.shape
        if not size:
            return draws
        flat = draws.neurons.reshape(-1)
        members = self.format.members(torch.from_numpy(np.maximum(flat, 0)), count).numpy()
        members[flat < 0] = -1
        neurons = members.reshape(trials, -1)
        wide = members.shape[1]
        return Draws(
            neurons,
            np.repeat(draws.keep, wide, axis=1),
            np.repeat(draws.flip, wide, axis=1),
            np.repeat(draws.uniforms, wide, axis=1),
        )


def check_combination(elements: object, effect: Effect, form: NumberFormat | None, shared: bool) -> None:
    """Raise FaultError unless the parts of a fault go together."""
    if not isinstance(effect, Effect):
        raise FaultError(f"Expected an effect such as Flip() or StuckAt(value=1), found {effect!r}.")
    if form is not None and not isinstance(form, NumberFormat):
        raise FaultError(f"Expected a number format such as FixedPoint(...), or None, found {form!r}.")
    single = isinstance(effect, Flip | StuckAt) and effect.count == 1 and not effect.adjacent
    if isinstance(elements, ErrorRate) and not single:
        raise FaultError(f"A bit error rate needs Flip() or StuckAt(value=...) of single bits, found {effect}.")
    if shared and (form is None or not form.shared_bits):
        raise FaultError("shared=True needs a format that shares a word: BlockFloat, AdaptivFloat or AffineInteger.")
    if shared and not isinstance(effect, BitEffect | RandomWord):
        raise FaultError(f"A shared word can be flipped, stuck or random, found {effect}.")


def named_mask(bits: tuple[int, ...], width: int) -> np.uint64:
    """Return a word with the named bits set, or raise FaultError."""
    for bit in bits:
        if not 0 <= bit < width:
            raise FaultError(f"Bit {bit} does not exist in a word of {width} bits; expected 0 (lowest) to {width - 1}.")
    return np.uint64(sum(1 << bit for bit in bits))


def _masks(effect: BitEffect, masks: Masks) -> tuple[Masks, Masks]:
    """Return what to keep and what to flip, so that the bits of ``masks`` suffer the effect."""
    ones, nothing = np.full_like(masks, ~np.uint64(0)), np.zeros_like(masks)
    if isinstance(effect, StuckAt):
        return ~masks, masks if effect.value else nothing
    return ones, masks
