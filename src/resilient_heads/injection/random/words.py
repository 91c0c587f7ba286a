"""Draw bits, words and uniform numbers for each element of each trial."""

import numpy as np
from numpy.typing import NDArray

from resilient_heads.errors import FaultError
from resilient_heads.injection.random.philox import below, uniform
from resilient_heads.injection.random.streams import Indices, Masks, paged_words


def draw_bits(
    seed: int, stream: str, trials: Indices, *, elements: int, word_bits: int, count: int, adjacent: bool
) -> Masks:
    """Draw ``count`` different bits of a word for each element of each trial.

    Args:
        seed: ``0 <= seed < 2**64``.
        stream: Name of the stream.
        trials: ``(N,)``, numbers of the trials.
        elements: K, elements of a trial.
        word_bits: Bits of a word, at most 64.
        count: Number of bits to draw, without replacement.
        adjacent: Draw a run of neighbours instead.

    Returns:
        ``(N, K)``, words in which the drawn bits are 1.

    Raises:
        FaultError: ``count`` exceeds ``word_bits``.
    """
    if count > word_bits:
        raise FaultError(f"count={count} different bits were asked for, but a word has {word_bits}.")
    each = np.arange(elements)
    first = paged_words(seed, stream, trials, each)[2]
    if adjacent:
        run = np.uint64((1 << count) - 1)
        return run << below(first, word_bits - count + 1)
    extra = count - 1
    masks = np.uint64(1) << below(first, word_bits - extra)
    for j in range(extra):
        place = each * extra + j
        words = np.stack(paged_words(seed, stream, trials, elements + place // 4))
        candidate = np.uint64(1) << below(words[place % 4, :, each].T, word_bits - extra + j + 1)
        taken = (masks & candidate) != 0
        masks |= np.where(taken, np.uint64(1 << (word_bits - extra + j)), candidate)
    return masks


def draw_words(seed: int, stream: str, trials: Indices, *, elements: int) -> Masks:
    """Draw 64 random bits for each element of each trial, ``(N, K)``."""
    _, _, high, low = paged_words(seed, stream, trials, np.arange(elements))
    words: Masks = high << np.uint64(32) | low
    return words


def draw_uniforms(seed: int, stream: str, trials: Indices, *, elements: int) -> NDArray[np.float64]:
    """Draw a uniform number in ``[0, 1)`` for each element of each trial, ``(N, K)``."""
    _, _, high, low = paged_words(seed, stream, trials, np.arange(elements))
    return uniform(high, low)
