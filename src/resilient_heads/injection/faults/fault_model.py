"""Fault models: which elements of a tensor fail, what happens to them, in which number format."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from resilient_heads.errors import ArgumentError, FaultError
from resilient_heads.incremental.recording.words import words
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
from resilient_heads.injection.faults.elements import AllElements, Elements, ErrorRate, RandomElements
from resilient_heads.injection.formats.base import NumberFormat
from resilient_heads.injection.formats.bits import apply_masks
from resilient_heads.injection.formats.dtypes import word_bits_of
from resilient_heads.injection.random.elements import draw_elements, draw_errors
from resilient_heads.injection.random.streams import Indices, Masks
from resilient_heads.injection.random.words import draw_bits, draw_uniforms, draw_words


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultModel:
    """What one trial does to one tensor. By default one bit of one element flips, both drawn uniformly.

    Attributes:
        elements: Which elements of an image's tensor.
        effect: What happens to each element.
        format: The number format that a faulty value passes through: it is encoded, changed as a word, and decoded.
            Other values stay as they are. None takes the tensor's own format.
        shared: Inject into the word that a group of values shares in ``format`` (the exponent of a block, the bias of
            an AdaptivFloat, a scale). ``elements`` then draws groups, and all values of a group are decoded anew.

    Raises:
        ArgumentError: Choices that do not go together.

    >>> FaultModel(elements=RandomElements(count=2), effect=StuckAt(value=0)).effect.value
    0
    """

    elements: RandomElements | ErrorRate | AllElements = RandomElements()
    effect: Effect = Flip()
    format: NumberFormat | None = None
    shared: bool = False

    def __post_init__(self) -> None:
        check_combination(self.elements, self.effect, self.format, self.shared)

    @property
    def needs_context(self) -> bool:
        """Whether :meth:`corrupt` needs the result of :meth:`context`."""
        return isinstance(self.effect, LayerMaximum) or (self.format is not None and self.format.shared_bits > 0)

    def draw(self, seed: int, stream: str, trials: Indices, *, neurons: int, word_bits: int) -> Draws:
        """Draw what each trial does: a function of (seed, stream, trial), for any batch.

        Args:
            seed: ``0 <= seed < 2**64``.
            stream: Name of the stream of random words, as of a site.
            trials: ``(N,)``, int64, numbers of the trials.
            neurons: Elements of one image's tensor.
            word_bits: Bits of the tensor's own words; a ``format`` has its own.

        Raises:
            FaultError: More elements or bits than there are, or a bit that the word does not have.
        """
        if self.elements.fixed:
            trials = np.zeros_like(trials)
        population = self.format.groups(neurons) if self.format is not None and self.shared else neurons
        width = self.width(word_bits)
        if isinstance(self.elements, ErrorRate):
            draws = self._draw_errors(seed, stream, trials, population, width)
        else:
            draws = self._draw_effect(
                seed, stream, trials, self._draw_elements(seed, stream, trials, population), width
            )
        return self._to_members(draws, neurons) if self.shared else draws

    def draw_at(
        self, seed: int, stream: str, trials: Indices, chosen: Indices, *, neurons: int, word_bits: int
    ) -> Draws:
        """Draw what happens to named elements.

        Args:
            seed: ``0 <= seed < 2**64``.
            stream: Name of the stream of random words.
            trials: ``(N,)``, numbers of the trials.
            chosen: ``(K,)``, flat indices of elements, or of groups where words are shared.
            neurons: Elements of one image's tensor.
            word_bits: Bits of the tensor's own words.
        """
        if self.elements.fixed:
            trials = np.zeros_like(trials)
        draws = self._draw_effect(seed, stream, trials, np.tile(chosen, (len(trials), 1)), self.width(word_bits))
        return self._to_members(draws, neurons) if self.shared else draws

    def context(self, rows: Tensor, draws: Draws) -> TensorContext:
        """Return what the effect needs to know about the fault-free tensor.

        Args:
            rows: ``(N, neurons)``, the fault-free images of N trials.
            draws: The draws of the same trials.
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

    def corrupt(self, values: Tensor, draws: Draws, *, context: TensorContext | None = None) -> Tensor:
        """Return the faulty values; the given ones are left as they are.

        Args:
            values: ``(N, K)``, the fault-free values at ``draws.neurons``; any value where that is -1.
            draws: The draws of N trials.
            context: The result of :meth:`context`, if :attr:`needs_context`.

        Returns:
            ``(N, K)``, in the dtype of ``values``. Where ``draws.neurons`` is -1, the given value.

        Raises:
            FaultError: The context is missing, or a bit that the word does not have.
        """
        if self.needs_context and context is None:
            raise FaultError("This fault model needs context=; get it from FaultModel.context().")
        context = context or TensorContext()
        values = values.detach()
        self._check_width(draws, values)
        keep, flip, uniforms = (
            torch.from_numpy(drawn).to(values.device) for drawn in (draws.keep, draws.flip, draws.uniforms)
        )
        on_bits = isinstance(self.effect, BitEffect | RandomWord)
        if self.format is None and on_bits:
            after = apply_masks(words(values), keep, flip).view(values.dtype)
        elif self.format is None:
            after = self._replace(values, uniforms, context)
        else:
            replaced = values if on_bits else self._replace(values, uniforms, context)
            encoded = self.format.encode(replaced.to(torch.float64), context.shared)
            shared = context.shared
            if self.shared and shared is not None:
                shared = apply_masks(shared, keep, flip)
            elif on_bits:
                encoded = apply_masks(encoded, keep, flip)
            after = self.format.decode(encoded, shared).to(values.dtype)
        # As words, so that a NaN outside of the fault keeps its bits.
        injected = torch.from_numpy(draws.neurons).to(values.device) >= 0
        return torch.where(injected, words(after.contiguous()), words(values)).view(values.dtype)

    def width(self, word_bits: int) -> int:
        """Return the bits of the words that the effect acts on, given the bits of the tensor's own words."""
        if self.format is None:
            return word_bits
        return self.format.shared_bits if self.shared else self.format.word_bits

    def _check_width(self, draws: Draws, values: Tensor) -> None:
        """Raise FaultError for a drawn bit that the word does not have, as for draws made for another dtype."""
        injected = draws.neurons >= 0
        touched = draws.flip.view(np.uint64)[injected]
        if not isinstance(self.effect, RandomWord):  # A random word also clears the bits above the word.
            touched = touched | ~draws.keep.view(np.uint64)[injected]
        highest = max(int(touched.max(initial=0)).bit_length() - 1, 0)
        _named_mask((highest,), self.width(word_bits_of(values.dtype)))

    def _replace(self, values: Tensor, uniforms: Tensor, context: TensorContext) -> Tensor:
        """Return the values that an effect on values puts in their place."""
        assert not isinstance(self.effect, BitEffect | RandomWord)
        return self.effect.replace(values, uniforms, values if context.maximum is None else context.maximum)

    def _draw_elements(self, seed: int, stream: str, trials: Indices, population: int) -> Indices:
        """Draw elements, or groups, for each trial: ``(N, K)``."""
        if isinstance(self.elements, RandomElements):
            count, adjacent = self.elements.count, self.elements.adjacent
            return draw_elements(seed, stream, trials, population=population, count=count, adjacent=adjacent)
        return np.broadcast_to(np.arange(population), (len(trials), population)).copy()

    def _draw_effect(self, seed: int, stream: str, trials: Indices, neurons: Indices, width: int) -> Draws:
        """Draw the random parts of the effect for known elements ``(N, K)`` with words of ``width`` bits."""
        elements, effect = neurons.shape[1], self.effect
        if isinstance(effect, BitEffect):
            if effect.bits is not None:
                masks = np.full(neurons.shape, _named_mask(effect.bits, width))
            else:
                count, adjacent = effect.count, effect.adjacent
                masks = draw_bits(
                    seed, stream, trials, elements=elements, word_bits=width, count=count, adjacent=adjacent
                )
            return Draws.of_masks(neurons, *_keep_and_flip(effect, masks))
        if isinstance(effect, RandomWord):
            drawn = draw_words(seed, stream, trials, elements=elements)
            low = np.uint64((1 << width) - 1)
            return Draws.of_masks(neurons, ~np.full_like(drawn, low), drawn & low)
        keep = np.full(neurons.shape, ~np.uint64(0))
        draws = Draws.of_masks(neurons, keep, np.zeros_like(keep))
        if isinstance(effect, RandomValue):
            uniforms = draw_uniforms(seed, stream, trials, elements=elements)
            return Draws(neurons, draws.keep, draws.flip, uniforms)
        return draws

    def _draw_errors(self, seed: int, stream: str, trials: Indices, population: int, width: int) -> Draws:
        """Draw single bits that fail, and merge those of the same word."""
        assert isinstance(self.elements, ErrorRate)
        assert isinstance(self.effect, BitEffect)
        bits = self.effect.bits or tuple(range(width))
        _named_mask(bits, width)
        errors = draw_errors(seed, stream, trials, population=population * len(bits), rate=self.elements.rate)
        failed = errors >= 0
        element = np.where(failed, errors // len(bits), -1)
        mask = np.uint64(1) << np.array(bits, dtype=np.uint64)[np.where(failed, errors % len(bits), 0)]
        # Errors ascend, so those of one word are neighbours: each first one opens a new column.
        first = failed & np.diff(element, axis=1, prepend=-1).astype(bool)
        column = np.cumsum(first, axis=1) - 1
        neurons = np.full((len(trials), int(first.sum(axis=1).max(initial=0))), -1, dtype=np.int64)
        masks = np.zeros(neurons.shape, dtype=np.uint64)
        rows = np.nonzero(failed)[0]
        neurons[rows, column[failed]] = element[failed]
        np.bitwise_or.at(masks, (rows, column[failed]), mask[failed])
        return Draws.of_masks(neurons, *_keep_and_flip(self.effect, masks))

    def _to_members(self, draws: Draws, count: int) -> Draws:
        """Turn draws of groups into draws of all values of these groups."""
        assert self.format is not None
        trials, size = draws.neurons.shape
        if not size:
            return draws
        groups = draws.neurons.reshape(-1)
        members = self.format.members(torch.from_numpy(np.maximum(groups, 0)), count).numpy()
        members[groups < 0] = -1
        widest = members.shape[1]
        return Draws(
            members.reshape(trials, -1),
            np.repeat(draws.keep, widest, axis=1),
            np.repeat(draws.flip, widest, axis=1),
            np.repeat(draws.uniforms, widest, axis=1),
        )


def check_combination(elements: object, effect: Effect, number_format: NumberFormat | None, shared: bool) -> None:
    """Raise ArgumentError unless the parts of a fault go together."""
    if not isinstance(elements, Elements):
        raise ArgumentError(f"elements must be such as RandomElements(count=2) or AllElements(), found {elements!r}.")
    if not isinstance(effect, Effect):
        raise ArgumentError(f"effect must be an effect such as Flip() or StuckAt(value=1), found {effect!r}.")
    if number_format is not None and not isinstance(number_format, NumberFormat):
        raise ArgumentError(
            f"format must be a number format such as FixedPoint(...), or None, found {number_format!r}."
        )
    single = isinstance(effect, Flip | StuckAt) and effect.count == 1 and not effect.adjacent
    if isinstance(elements, ErrorRate) and not single:
        raise ArgumentError(f"A bit error rate needs Flip() or StuckAt(value=...) of single bits, found {effect}.")
    if shared and (number_format is None or not number_format.shared_bits):
        raise ArgumentError("shared=True needs a format that shares a word: BlockFloat, AdaptivFloat or AffineInteger.")
    if shared and not isinstance(effect, BitEffect | RandomWord):
        raise ArgumentError(f"shared=True needs Flip, StuckAt or RandomWord, found {effect}.")


def _named_mask(bits: tuple[int, ...], width: int) -> np.uint64:
    """Return a word with the named bits set, or raise FaultError."""
    for bit in bits:
        if not 0 <= bit < width:
            raise FaultError(f"Bit {bit} does not exist in a word of {width} bits; expected 0 (lowest) to {width - 1}.")
    return np.uint64(sum(1 << bit for bit in bits))


def _keep_and_flip(effect: BitEffect, masks: Masks) -> tuple[Masks, Masks]:
    """Return the masks ``keep`` and ``flip`` that apply the effect to the bits of ``masks``."""
    if isinstance(effect, StuckAt):
        return ~masks, masks if effect.value else np.zeros_like(masks)
    return np.full_like(masks, ~np.uint64(0)), masks
