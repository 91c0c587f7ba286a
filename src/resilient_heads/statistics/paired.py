"""Ratio and difference of two figures that were measured on the same images.

``first_errors`` and ``second_errors``, ``(I,)``, hold the contribution of each image to the error of a figure, NaN if
unknown; see :class:`~resilient_heads.statistics.sample.Influence`. An effect of an image on both figures cancels. The
ends are NaN with fewer than :data:`MIN_IMAGES` images, or if the figures give no finite errors.
"""

import math

import numpy as np

from resilient_heads.statistics.intervals import (
    DEFAULT_LEVEL,
    MIN_IMAGES,
    NOT_DEFINED,
    TOO_FEW_IMAGES,
    Estimate,
    Floats,
    ratio,
)
from resilient_heads.statistics.weighted import bootstrap_t

_METHOD = "paired bootstrap-t over images"


def paired_difference(
    first: float, second: float, first_errors: Floats, second_errors: Floats, *, level: float = DEFAULT_LEVEL
) -> Estimate:
    """Return the interval of ``first - second``."""
    value = first - second
    errors = first_errors - second_errors
    if len(errors) < MIN_IMAGES:
        return Estimate(value, math.nan, math.nan, level, TOO_FEW_IMAGES)
    if not math.isfinite(value) or not np.isfinite(errors).all():
        return Estimate(value, math.nan, math.nan, level, NOT_DEFINED)
    down, up = bootstrap_t(errors, level=level)
    return Estimate(value, value - down, value + up, level, _METHOD)


def paired_ratio(
    first: float, second: float, first_errors: Floats, second_errors: Floats, *, level: float = DEFAULT_LEVEL
) -> Estimate:
    """Return the interval of ``first / second`` for two figures of at least 0, from their logarithms; 0/0 is NaN."""
    value = ratio(first, second)
    if len(first_errors) < MIN_IMAGES:
        return Estimate(value, math.nan, math.nan, level, TOO_FEW_IMAGES)
    if not (0 < first < math.inf and 0 < second < math.inf):
        return Estimate(value, math.nan, math.nan, level, NOT_DEFINED)
    down, up = bootstrap_t(first_errors / first - second_errors / second, level=level)
    with np.errstate(over="ignore"):
        low, high = value * float(np.exp(-down)), value * float(np.exp(up))
    return Estimate(value, low, high, level, _METHOD)
