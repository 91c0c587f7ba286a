"""Which image, neuron and bit a trial hits: a pure function of (seed, layer, trial)."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resilient_heads.errors import FaultError
from resilient_heads.injection.philox import Words, philox4x32, uniform

Indices = NDArray[np.int64]

_IMAGE_STREAM = "\0image"
_CANDIDATES = 16


@dataclass(frozen=True, slots=True)
class Draws:
    """Where each of N trials strikes.

    Attributes:
        neurons: ``(N,)``, flat index into one sample's output.
        bits: ``(N,)``, position in the word.
    """

    neurons: Indices
    bits: Indices


def draw_faults(seed: int, layer: str, trials: Indices, *, neurons: int, bits: int) -> Draws:
    """Draw a neuron and a bit for each trial, uniformly.

    Args:
        seed: The campaign's seed, ``0 <= seed < 2**64``.
        layer: Name of the layer.
        trials: ``(N,)``, numbers of the trials.
        neurons: Output neurons of the layer for one sample.
        bits: Bits of a word.
    """
    w0, w1, w2, _ = _words(seed, layer, trials, block=0)
    return Draws(
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


def _words(seed: int, stream: str, trials: Indices, *, block: int) -> tuple[Words, Words, Words, Words]:
    """Return four words for each trial of a named stream."""
    if not 0 <= seed < 2**64:
        raise FaultError(f"The seed must lie in [0, 2**64), found {seed}.")
    if not 0 <= block < 2**16:
        raise FaultError(f"A trial has 65,536 blocks of random words, found block {block}.")
    name = hashlib.sha256(stream.encode()).digest()
    index = trials.astype(np.uint64)
    low = np.uint64(0xFFFFFFFF)
    counter = (
        index & low,
        (index >> np.uint64(32)) | np.uint64(block << 16),
        np.full_like(index, int.from_bytes(name[:4], "little")),
        np.full_like(index, int.from_bytes(name[4:8], "little")),
    )
    return philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
