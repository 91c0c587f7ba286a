"""Draw the elements of a tensor that each trial injects into."""

import math
from dataclasses import dataclass

import numpy as np

from resilient_heads.errors import FaultError
from resilient_heads.injection.random.philox import below, uniform
from resilient_heads.injection.random.streams import Indices, random_words, substream

_ERRORS_A_CHUNK = 2**14


@dataclass(frozen=True, slots=True)
class SingleFlips:
    """Where each of N single bit flips goes.

    Attributes:
        neurons: ``(N,)``, flat index into one image's part of the tensor.
        bits: ``(N,)``, position in the word.
    """

    neurons: Indices
    bits: Indices


def draw_single_flips(seed: int, stream: str, trials: Indices, *, neurons: int, word_bits: int) -> SingleFlips:
    """Draw a neuron and a bit for each trial, uniformly.

    Args:
        seed: The campaign's seed, ``0 <= seed < 2**64``.
        stream: Name of the stream, as of a site.
        trials: ``(N,)``, numbers of the trials.
        neurons: Elements of one image's part of the tensor.
        word_bits: Bits of a word.
    """
    w0, w1, w2, _ = random_words(seed, stream, trials, block=0)
    return SingleFlips(neurons=(uniform(w0, w1) * neurons).astype(np.int64), bits=below(w2, word_bits).astype(np.int64))


def draw_elements(seed: int, stream: str, trials: Indices, *, population: int, count: int, adjacent: bool) -> Indices:
    """Draw ``count`` different elements for each trial; all sets of that size are equally likely.

    Element i uses block i of the trial's random words, so a single element is the neuron of
    :func:`draw_single_flips`. The time grows with the square of ``count``.

    Args:
        seed: ``0 <= seed < 2**64``.
        stream: Name of the stream.
        trials: ``(N,)``, numbers of the trials.
        population: Number of elements to draw from.
        count: Number of elements to draw, without replacement.
        adjacent: Draw a run of neighbours instead; all runs are equally likely.

    Returns:
        ``(N, count)``, indices of elements.

    Raises:
        FaultError: ``count`` exceeds ``population``.

    Source: R. W. Floyd's algorithm (Bentley and Floyd, *A sample of brilliance*, CACM 1987).
    """
    if count > population:
        raise FaultError(f"count={count} different elements were asked for, but the tensor has {population}.")
    if adjacent:
        w0, w1, _, _ = random_words(seed, stream, trials, block=0)
        start = (uniform(w0, w1) * (population - count + 1)).astype(np.int64)
        return start[:, None] + np.arange(count)
    chosen = np.empty((len(trials), count), dtype=np.int64)
    for i in range(count):
        last = population - count + i
        w0, w1, _, _ = random_words(seed, stream, trials, block=i)
        candidate = (uniform(w0, w1) * (last + 1)).astype(np.int64)
        taken = (chosen[:, :i] == candidate[:, None]).any(axis=1)
        chosen[:, i] = np.where(taken, last, candidate)
    return chosen


def draw_errors(seed: int, stream: str, trials: Indices, *, population: int, rate: float) -> Indices:
    """Draw the bits that fail when each bit fails independently with the same probability.

    The function draws the gaps between failures, which are geometric. It thus needs one random number for each
    failure, not one for each bit. Nothing is rounded: a rate of 1e-9 over 1,000 bits fails once in a million trials.

    Args:
        seed: ``0 <= seed < 2**64``.
        stream: Name of the stream.
        trials: ``(N,)``, numbers of the trials.
        population: Number of bits that can fail.
        rate: Probability of each failure, in [0, 1].

    Returns:
        ``(N, K)``, ascending indices of bits. K is the largest number of failures in any trial; -1 fills the rest.
    """
    if rate == 0 or not population or not len(trials):
        return np.empty((len(trials), 0), dtype=np.int64)
    # A trial has a limited number of random words, so each part of a large population has a stream of its own.
    size = min(population, math.ceil(_ERRORS_A_CHUNK / rate))
    parts = []
    for start in range(0, population, size):
        part_stream = substream(stream, f"errors{start}")
        part = _errors_of_part(seed, part_stream, trials, min(size, population - start), rate)
        parts.append(np.where(part >= 0, part + start, -1))
    together = np.concatenate(parts, axis=1)
    counts = (together >= 0).sum(axis=1)
    packed = np.full((len(trials), int(counts.max())), -1, dtype=np.int64)
    rows, columns = np.nonzero(together >= 0)
    packed[rows, np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)] = together[rows, columns]
    return packed


def _errors_of_part(seed: int, stream: str, trials: Indices, population: int, rate: float) -> Indices:
    """Return the failures among as many bits as a trial's random words suffice for; -1 marks columns without one."""
    expected = population * rate
    blocks = int(expected + 8 * math.sqrt(expected) + 8) // 2 + 1
    failures = np.empty((len(trials), 0), dtype=np.int64)
    last = np.full((len(trials), 1), -1, dtype=np.int64)
    block = 0
    while bool((last < population).any()):
        w0, w1, w2, w3 = random_words(seed, stream, trials, block=np.arange(block, block + blocks))
        uniforms = np.stack([uniform(w0, w1), uniform(w2, w3)], axis=2).reshape(len(trials), -1)
        with np.errstate(divide="ignore"):  # At a rate of 1 the divisor is log(0), and every gap is 0.
            gaps = np.minimum(np.log1p(-uniforms) / np.log1p(-rate), population).astype(np.int64)
        further = last + np.cumsum(gaps + 1, axis=1)
        failures, last, block = np.concatenate([failures, further], axis=1), further[:, -1:], block + blocks
    return np.where(failures < population, failures, -1)
