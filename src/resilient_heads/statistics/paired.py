"""Two figures on the same images: their ratio and their difference."""

import math

import numpy as np

from resilient_heads.statistics.intervals import DEFAULT_LEVEL, MIN_IMAGES, Estimate, Floats, ratio
from resilient_heads.statistics.weighted import studentised

_METHOD = "paired bootstrap-t over images"


def paired_difference(
    first: float, second: float, errors: Floats, others: Floats, *, level: float = DEFAULT_LEVEL
) -> Estimate:
    """Interval of a difference; what an image does to both figures alike cancels.

    Args:
        first: A figure.
        second: What is subtracted.
        errors: ``(I,)``, each image's part of the first one's error, NaN where unknown; see
            :class:`~resilient_heads.statistics.sample.Influence`.
        others: Likewise of the second.
        level: Confidence level.

    Returns:
        The difference; its ends are NaN with few images or where a figure is not finite.
    """
    value = first - second
    together = errors - others
    if len(together) < MIN_IMAGES:
        return Estimate(value, math.nan, math.nan, level, "too few images")
    if not math.isfinite(value) or not np.isfinite(together).all():
        return Estimate(value, math.nan, math.nan, level, _METHOD)
    down, up = studentised(together, level=level)
    return Estimate(value, value - down, value + up, level, _METHOD)


def paired_ratio(
    first: float, second: float, errors: Floats, others: Floats, *, level: float = DEFAULT_LEVEL
) -> Estimate:
    """Interval of a ratio of two figures that are not negative, by their logarithms.

    Args:
        first: Numerator.
        second: Denominator.
        errors: ``(I,)``, as for :func:`paired_difference`.
        others: Likewise.
        level: Confidence level.

    Returns:
        The ratio, NaN for 0/0. If one of the figures is 0 or not finite its ends are NaN.
    """
    value = ratio(first, second)
    if len(errors) < MIN_IMAGES:
        return Estimate(value, math.nan, math.nan, level, "too few images")
    if not (0 < first < math.inf and 0 < second < math.inf):
        return Estimate(value, math.nan, math.nan, level, _METHOD)
    down, up = studentised(errors / first - others / second, level=level)
    with np.errstate(over="ignore"):
        low, high = value * float(np.exp(-down)), value * float(np.exp(up))
    return Estimate(value, low, high, level, _METHOD)
