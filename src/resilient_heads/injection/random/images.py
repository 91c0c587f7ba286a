"""Draw the image of each trial."""

import numpy as np
from numpy.typing import NDArray

from resilient_heads.errors import FaultError
from resilient_heads.injection.random.philox import uniform
from resilient_heads.injection.random.streams import Indices, random_words, stream_name

_CANDIDATES = 16


def draw_images(seed: int, trials: Indices, eligible: NDArray[np.bool_]) -> Indices:
    """Draw an eligible image for each trial, uniformly and with replacement.

    The draw depends on the seed and the trial, not on the layer. Trial i of every layer therefore uses the same image,
    and one golden run serves all layers. A trial takes the first eligible image of a fixed sequence of candidates. Two
    models whose eligible images differ a little therefore use the same image in most trials.

    Args:
        seed: The campaign's seed, ``0 <= seed < 2**64``.
        trials: ``(N,)``, numbers of the trials.
        eligible: ``(I,)``, the images that may be drawn.

    Returns:
        ``(N,)``, indices into the images.

    Raises:
        FaultError: No image is eligible.
    """
    allowed = np.flatnonzero(eligible)
    if not len(allowed):
        raise FaultError("No image is eligible for injection; expected at least one.")
    stream = stream_name("", "image")
    w0, w1, _, _ = random_words(seed, stream, trials, block=0)
    images = allowed[(uniform(w0, w1) * len(allowed)).astype(np.int64)]
    undecided = np.ones(len(trials), dtype=bool)
    for block in range(1, _CANDIDATES + 1):
        w0, w1, _, _ = random_words(seed, stream, trials, block=block)
        candidate = (uniform(w0, w1) * len(eligible)).astype(np.int64)
        accepted = undecided & eligible[candidate]
        images[accepted] = candidate[accepted]
        undecided &= ~accepted
    return images


def draw_weighted_images(seed: int, trials: Indices, image_weights: Indices) -> Indices:
    """Draw an image for each trial with a probability proportional to its weight, with replacement.

    As in :func:`draw_images`, trial i of every layer uses the same image.

    Args:
        seed: The campaign's seed, ``0 <= seed < 2**64``.
        trials: ``(N,)``, numbers of the trials.
        image_weights: ``(I,)``, whole numbers of at least 0, at least one of them positive.

    Returns:
        ``(N,)``, indices into the images.
    """
    ends = np.cumsum(image_weights)
    w0, w1, _, _ = random_words(seed, stream_name("", "ticket"), trials, block=0)
    images: Indices = np.searchsorted(ends, (uniform(w0, w1) * ends[-1]).astype(np.int64), side="right")
    return images
