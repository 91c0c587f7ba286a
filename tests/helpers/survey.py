"""Weighted samples from tables of L layers and N trials, and the number of repetitions of a simulation."""

import os

import numpy as np
from numpy.typing import NDArray

from resilient_heads.statistics.intervals import DEFAULT_LEVEL, Estimate
from resilient_heads.statistics.sample import Sample
from resilient_heads.statistics.weighted import weighted_rate

Floats = NDArray[np.float64]

THOROUGH = "RESILIENT_HEADS_THOROUGH" in os.environ


def repeated(thorough: int) -> int:
    """Return the number of repetitions: all if RESILIENT_HEADS_THOROUGH is set, otherwise a sixth."""
    return thorough if THOROUGH else thorough // 6


def survey(weights: Floats, trials: int, image: NDArray[np.int64] | None = None) -> Sample:
    """Return a sample of ``trials`` trials at each of L layers; trial i uses the same image at every layer."""
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
    events: NDArray[np.bool_],
    weights: Floats,
    *,
    image: NDArray[np.int64] | None = None,
    level: float = DEFAULT_LEVEL,
) -> Estimate:
    """Return the weighted rate of the events in a table ``(L, N)``."""
    return weighted_rate(events.ravel(), survey(weights, events.shape[1], image), level=level)
