"""Trials as tables of layers and numbers, turned into weighted samples; how often simulations are repeated."""

import os

import numpy as np
from numpy.typing import NDArray

from resilient_heads.statistics.intervals import DEFAULT_LEVEL, Estimate
from resilient_heads.statistics.sample import Sample
from resilient_heads.statistics.weighted import weighted_rate

Floats = NDArray[np.float64]

THOROUGH = "RESILIENT_HEADS_THOROUGH" in os.environ


def repeated(thorough: int) -> int:
    """Return how often to simulate: a sixth of it unless RESILIENT_HEADS_THOROUGH is set."""
    return thorough if THOROUGH else thorough // 6


def survey(weights: Floats, trials: int, image: NDArray[np.int64] | None = None) -> Sample:
    """Return ``trials`` trials of each of L layers; trial i strikes one image in all of them."""
    layer = np.repeat(np.arange(len(weights)), trials)
    number = np.tile(np.arange(trials), len(weights))
    return Sample(
        weight=np.repeat(np.asarray(weights, dtype=float) / max(trials, 1), trials),
        site=layer,
        stratum=layer,
        image=number if image is None else np.tile(image, len(weights)),
        image_draw=number,
    )


def table_rate(
    hits: NDArray[np.bool_],
    weights: Floats,
    *,
    image: NDArray[np.int64] | None = None,
    level: float = DEFAULT_LEVEL,
) -> Estimate:
    """Return the weighted rate of a table ``(L, N)``."""
    return weighted_rate(hits.ravel(), survey(weights, hits.shape[1], image), level=level)
