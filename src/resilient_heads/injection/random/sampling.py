"""Which image, neurons and bits a trial hits: a pure function of (seed, stream, trial)."""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resilient_heads.checks import seed_number
from resilient_heads.errors import FaultError
from resilient_heads.injection.random.philox import Words, philox4x32, uniform

Indices = NDArray[np.int64]
Masks = NDArray[np.uint64]

_IMAGE_STREAM = "\0image"
_TICKET_STREAM = "\0ticket"
_CANDIDATES = 16
_BLOCKS = 2**16
_ERRORS_A_CHUNK = 2**14


@dataclass(frozen=True, slots=True)
class SingleFlips:
    """Where each of N single flips strikes.

    Attributes:
        neurons: ``(N,)``, flat index into one sample's output.
        bits: ``(N,)``, position in the word.
    """

    neurons: Indices
    bits: Indices


def draw_faults(seed: int, layer: str, trials: Indices, *, neurons: int, bits: int) -> SingleFlips:
    """Draw a neuron and a bit for each trial, uniformly.

    Args:
        seed: The campaign's seed, ``0 <= seed < 2**64``.
        layer: Name of the layer.
        trials: ``(N,)``, numbers of the trials.
        neurons: Output neurons of the layer for one sample.
        bits: Bits of a word.
    """
    w0, w1, w2, _ = _words(seed, layer, trials, block=0)
    return SingleFlips(
        neurons=(uniform(w0, w1) * neurons).astype(np.int64),
        bits=(w2 * np.uint64(bits) >> np.uint64(32)).astype(np.int64),
    )


def draw_images(seed: int, trials: Indices, eligible: NDArray[np.bool_]) -> Indices:
    """Draw an eligible image for each trial, uniformly and with replacement.

    The image depends on the seed and the trial, not on the layer: trial i of every layer strikes the same image, so a
    golden run serves all layers. A trial takes the first eligible one of a fixed sequence of images, so two models
    whose eligible images differ a little still strike the same image in most trials.

    Args:
        seed: The campaign's seed, ``0 <= seed < 2**64``.
        trials: ``(N,)``, numbers of the trials.
        eligible: ``(I,)``, which images may be struck.

    Returns:
        ``(N,)``, indices into the images.

    Raises:
        FaultError: No image is eligible.
    """
    allowed = np.flatnonzero(eligible)
    if not len(allowed):
        raise FaultError("No image is eligible for injection.")
    w0, w1, _, _ = _words(seed, _IMAGE_STREAM, trials, block=0)
    chosen = allowed[(uniform(w0, w1) * len(allowed)).astype(np.int64)]
    open_trials = np.ones(len(trials), dtype=bool)
    for block in range(1, _CANDIDATES + 1):
        w0, w1, _, _ = _words(seed, _IMAGE_STREAM, trials, block=block)
        candidate = (uniform(w0, w1) * len(eligible)).astype(np.int64)
        taken = open_trials & eligible[candidate]
        chosen[taken] = candidate[taken]
        open_trials &= ~taken
    return chosen


def draw_weighted_images(seed: int, trials: Indices, image_weights: Indices) -> Indices:
    """Draw an image for each trial, as often as it has tickets; with replacement, and the same one in every layer.

    Args:
        seed: The campaign's seed, ``0 <= seed < 2**64``.
        trials: ``(N,)``, numbers of the trials.
        image_weights: ``(I,)``, of each image, at least 0; one at least has some.

    Returns:
        ``(N,)``, indices into the images.
    """
    ends = np.cumsum(image_weights)
    w0, w1, _, _ = _words(seed, _TICKET_STREAM, trials, block=0)
    drawn: Indices = np.searchsorted(ends, (uniform(w0, w1) * ends[-1]).astype(np.int64), side="right")
    return drawn


def draw_elements(seed: int, stream: str, trials: Indices, *, population: int, count: int, adjacent: bool) -> Indices:
    """Draw ``count`` different elements for each trial, every set of that size alike.

    The i-th element takes its random words from block i of the trial; a single element is that of :func:`draw_faults`.
    The time grows with the square of ``count``.

    Args:
        seed: ``0 <= seed < 2**64``.
        stream: Name of what is struck.
        trials: ``(N,)``, numbers of the trials.
        population: How many elements there are.
        count: How many are drawn, without replacement.
        adjacent: Draw a run of neighbours instead, every run alike.

    Returns:
        ``(N, count)``.

    Raises:
        FaultError: More are asked for than there are.

    Source: R. W. Floyd's algorithm (Bentley and Floyd, *A sample of brilliance*, CACM 1987).
    """
    if count > population:
        raise FaultError(f"{count} different elements were asked for, but {stream!r} has {population}.")
    if adjacent:
        w0, w1, _, _ = _words(seed, stream, trials, block=0)
        start = (uniform(w0, w1) * (population - count + 1)).astype(np.int64)
        return start[:, None] + np.arange(count)
    chosen = np.empty((len(trials), count), dtype=np.int64)
    for i in range(count):
        last = population - count + i
        w0, w1, _, _ = _words(seed, stream, trials, block=i)
        candidate = (uniform(w0, w1) * (last + 1)).astype(np.int64)
        taken = (chosen[:, :i] == candidate[:, None]).any(axis=1)
        chosen[:, i] = np.where(taken, last, candidate)
    return chosen


def draw_bits(
    seed: int, stream: str, trials: Indices, *, elements: int, width: int, count: int, adjacent: bool
) -> Masks:
    """Draw ``count`` different bits of a word for each element of each trial.

    Args:
        seed: ``0 <= seed < 2**64``.
        stream: Name of what is struck.
        trials: ``(N,)``, numbers of the trials.
        elements: K, elements of a trial.
        width: Bits of a word, at most 64.
        count: How many are drawn, without replacement.
        adjacent: Draw a run of neighbours instead.

    Returns:
        ``(N, K)``, words in which the drawn bits are set.

    Raises:
        FaultError: More bits are asked for than a word has.
    """
    if count > width:
        raise FaultError(f"{count} different bits were asked for, but a word has {width}.")
    each = np.arange(elements)
    first = _paged(seed, stream, trials, each)[2]
    if adjacent:
        run = np.uint64((1 << count) - 1)
        return run << _share(first, width - count + 1)
    extra = count - 1
    masks = np.uint64(1) << _share(first, width - extra)
    for j in range(extra):
        place = each * extra + j
        words = np.stack(_paged(seed, stream, trials, elements + place // 4))
        candidate = np.uint64(1) << _share(words[place % 4, :, each].T, width - extra + j + 1)
        taken = (masks & candidate) != 0
        masks |= np.where(taken, np.uint64(1 << (width - extra + j)), candidate)
    return masks


def draw_words(seed: int, stream: str, trials: Indices, *, elements: int) -> Masks:
    """Return 64 random bits for each element of each trial, ``(N, K)``."""
    _, _, high, low = _paged(seed, stream, trials, np.arange(elements))
    words: Masks = high << np.uint64(32) | low
    return words


def draw_uniforms(seed: int, stream: str, trials: Indices, *, elements: int) -> NDArray[np.float64]:
    """Return a number in ``[0, 1)`` for each element of each trial, ``(N, K)``."""
    _, _, high, low = _paged(seed, stream, trials, np.arange(elements))
    return uniform(high, low)


def draw_errors(seed: int, stream: str, trials: Indices, *, places: int, rate: float) -> Indices:
    """Let each place fail by itself with the same probability.

    The gaps between failures are geometric, which is the same distribution, and costs one random number for each
    failure instead of one for each place. No count is rounded: a rate of 1e-9 over 1,000 places fails once in a
    million trials.

    Args:
        seed: ``0 <= seed < 2**64``.
        stream: Name of what is struck.
        trials: ``(N,)``, numbers of the trials.
        places: How many places can fail.
        rate: Probability of each, in [0, 1].

    Returns:
        ``(N, K)``, ascending, K the largest count of any trial; -1 fills up the others.
    """
    if rate == 0 or not places or not len(trials):
        return np.empty((len(trials), 0), dtype=np.int64)
    # A trial has a limited number of random words, so large populations are cut into pieces with their own.
    size = min(places, math.ceil(_ERRORS_A_CHUNK / rate))
    parts = []
    for start in range(0, places, size):
        part = _chunk_of_errors(seed, f"{stream}\0errors{start}", trials, min(size, places - start), rate)
        parts.append(np.where(part >= 0, part + start, -1))
    together = np.concatenate(parts, axis=1)
    counts = (together >= 0).sum(axis=1)
    packed = np.full((len(trials), int(counts.max())), -1, dtype=np.int64)
    rows, columns = np.nonzero(together >= 0)
    packed[rows, np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)] = together[rows, columns]
    return packed


def _chunk_of_errors(seed: int, stream: str, trials: Indices, places: int, rate: float) -> Indices:
    """Return the failures among so many places that a trial's random words suffice; -1 where there are no more."""
    expected = places * rate
    step = int(expected + 8 * math.sqrt(expected) + 8) // 2 + 1
    found = np.empty((len(trials), 0), dtype=np.int64)
    last = np.full((len(trials), 1), -1, dtype=np.int64)
    block = 0
    while bool((last < places).any()):
        w0, w1, w2, w3 = _words(seed, stream, trials, block=np.arange(block, block + step))
        uniforms = np.stack([uniform(w0, w1), uniform(w2, w3)], axis=2).reshape(len(trials), -1)
        with np.errstate(divide="ignore"):  # a rate of 1: log(0), and every gap is 0
            gaps = np.minimum(np.log1p(-uniforms) / np.log1p(-rate), places).astype(np.int64)
        here = last + np.cumsum(gaps + 1, axis=1)
        found, last, block = np.concatenate([found, here], axis=1), here[:, -1:], block + step
    return np.where(found < places, found, -1)


def _share(word: Words, count: int) -> Words:
    """Turn a 32-bit word into a number in ``[0, count)``."""
    return word * np.uint64(count) >> np.uint64(32)


def _paged(seed: int, stream: str, trials: Indices, blocks: NDArray[np.int64]) -> tuple[Words, Words, Words, Words]:
    """Return four words ``(N, B)`` for any number of blocks: beyond a trial's own, from streams of other names."""
    pages = [
        _words(
            seed, f"{stream}\0page{page}" if page else stream, trials, block=blocks[blocks // _BLOCKS == page] % _BLOCKS
        )
        for page in np.unique(blocks // _BLOCKS)
    ]
    if not pages:
        nothing = np.zeros((len(trials), 0), dtype=np.uint64)
        return nothing, nothing, nothing, nothing
    w0, w1, w2, w3 = (np.concatenate(words, axis=1) for words in zip(*pages, strict=True))
    return w0, w1, w2, w3


def _words(
    seed: int, stream: str, trials: Indices, *, block: int | NDArray[np.int64]
) -> tuple[Words, Words, Words, Words]:
    """Return four words for each trial of a named stream: ``(N,)``, or ``(N, B)`` for B blocks."""
    seed_number(seed)
    if not 0 <= np.min(block) <= np.max(block) < _BLOCKS:
        raise FaultError(f"A trial has {_BLOCKS:,} blocks of random words, found block {np.max(block)}.")
    name = hashlib.sha256(stream.encode()).digest()
    index, blocks = trials.astype(np.uint64), np.asarray(block).astype(np.uint64)
    if blocks.ndim:
        index, blocks = np.broadcast_arrays(index[:, None], blocks)
    low = np.uint64(0xFFFFFFFF)
    counter = (
        index & low,
        (index >> np.uint64(32)) | (blocks << np.uint64(16)),
        np.full_like(index, int.from_bytes(name[:4], "little")),
        np.full_like(index, int.from_bytes(name[4:8], "little")),
    )
    return philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
