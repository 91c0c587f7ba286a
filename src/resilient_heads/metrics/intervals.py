"""Confidence intervals for rates, means and ratios."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from resilient_heads.errors import ResultError

Floats = NDArray[np.float64]

DEFAULT_LEVEL = 0.99
RESAMPLES = 2000
MIN_IMAGES = 10
"""Struck images below which no interval over images is given."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its interval.

    Attributes:
        value: The point estimate; NaN where nothing could be estimated.
        low: Lower end of the interval.
        high: Upper end; infinite for a ratio whose denominator may be zero.
        level: Confidence level, such as 0.99.
        method: How the interval was made.
    """

    value: float
    low: float
    high: float
    level: float
    method: str

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def normal_quantile(level: float) -> float:
    """Return the two-sided standard normal quantile, 2.576 for 0.99.

    Raises:
        ResultError: The level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ResultError(f"A confidence level lies between 0 and 1, found {level}.")
    return NormalDist().inv_cdf(0.5 + level / 2)


def wilson(rate: float, trials: float, *, level: float = DEFAULT_LEVEL) -> Estimate:
    """Wilson score interval of a rate.

    Args:
        rate: Observed share, in ``[0, 1]``.
        trials: Number of trials; an effective number may be fractional.
        level: Confidence level.

    Source: Wilson, *Probable inference, the law of succession, and statistical inference*, JASA 1927.
    """
    z = normal_quantile(level)
    if not trials > 0:
        return Estimate(math.nan, 0.0, 1.0, level, "wilson")
    centre = rate + z * z / (2 * trials)
    spread = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    # The ends are exact at the borders, where rounding would leave 1e-19.
    low = 0.0 if rate <= 0 else max(0.0, (centre - spread) / scale)
    high = 1.0 if rate >= 1 else min(1.0, (centre + spread) / scale)
    return Estimate(rate, low, high, level, "wilson")


def weighted_rate(
    hits: NDArray[np.bool_],
    weights: Floats,
    *,
    image: NDArray[np.int64] | None = None,
    level: float = DEFAULT_LEVEL,
) -> Estimate:
    """Wilson interval of a weighted mean of rates, for trials that share their images.

    Column i of ``hits`` holds trial i of every layer, all on one image. The interval is Wilson's at an effective number
    of trials, the smallest of three: the number that holds when no event was seen, ``N / max(weights)``; the one that
    the variance between columns implies, since fragile images are fragile in every layer; and, with ``image``, the one
    that the variance between images implies, since trials on one image are alike. What no struck image shows, such as
    a rare kind of image that is fragile, no interval can know.

    Args:
        hits: ``(L, N)``, whether trial i of layer l had the outcome.
        weights: ``(L,)``, non-negative, with a sum of 1.
        image: ``(N,)``, which image trial i struck; None where every trial has its own.
        level: Confidence level.

    Returns:
        The rate; NaN with the interval [0, 1] where there is no trial.

    Source: Korn and Graubard, *Survey Methodology* 24, 1998, for an effective size from the variance of clusters.
    """
    trials = hits.shape[1]
    if not trials:
        return wilson(math.nan, 0, level=level)
    per_trial: Floats = weights @ hits
    rate = min(float(per_trial.mean()), 1.0)
    residual = per_trial - rate
    clusters = [residual] if image is None else [residual, np.bincount(image, weights=residual)]
    effective = trials / float(weights.max())
    for sums in clusters:
        variance = float(np.square(sums).sum()) / trials**2
        if variance > 0 and 0 < rate < 1:
            effective = min(effective, rate * (1 - rate) / variance)
    return wilson(rate, effective, level=level)


def mean_interval(values: Floats, *, level: float = DEFAULT_LEVEL) -> Estimate:
    """Interval of the mean of independent values, by the central limit theorem.

    Args:
        values: ``(I,)``, one an image.
        level: Confidence level.
    """
    mean = float(values.mean())
    if len(values) < MIN_IMAGES:
        return Estimate(mean, math.nan, math.nan, level, "too few images")
    spread = normal_quantile(level) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Estimate(mean, mean - spread, mean + spread, level, "normal")


@functools.lru_cache(maxsize=4)
def image_weights(images: int, *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Return how often a bootstrap draws each image, ``(resamples, images)``; rows sum to ``images``."""
    generator = np.random.Generator(np.random.Philox(seed))
    weights = generator.multinomial(images, np.full(images, 1 / images), size=resamples).astype(np.float64)
    weights.flags.writeable = False
    return weights


def bootstrap(
    statistic: Callable[[Floats], Floats], images: int, *, level: float = DEFAULT_LEVEL, seed: int = 0
) -> Estimate:
    """Percentile bootstrap over images: trials on one image are alike, so images are resampled, not trials.

    Args:
        statistic: Maps how often each image counts, ``(B, images)``, to B values. Rows of ones give the estimate. NaN
            marks a resample in which the statistic does not exist; such resamples are left out.
        images: Number of struck images.
        level: Confidence level.
        seed: Of the resampling.

    Returns:
        The estimate. With fewer than :data:`MIN_IMAGES` images, or where no resample exists, its ends are NaN: nothing
        can be said of other images.

    Source: Efron, *Bootstrap methods: another look at the jackknife*, Annals of Statistics 1979.
    """
    value = float(statistic(np.ones((1, images)))[0]) if images else math.nan
    if images < MIN_IMAGES:
        return Estimate(value, math.nan, math.nan, level, "too few images")
    values = statistic(image_weights(images, seed=seed))
    values = values[~np.isnan(values)]
    if not len(values):
        return Estimate(value, math.nan, math.nan, level, "bootstrap over images")
    tail = (1 - level) / 2
    # "inverted_cdf" takes an observed value, so an infinite ratio stays infinite and never becomes NaN.
    low, high = np.quantile(values, [tail, 1 - tail], method="inverted_cdf")
    return Estimate(value, float(low), float(high), level, "bootstrap over images")


def ratio_of_rates(numerator: Estimate, denominator: Estimate) -> Estimate:
    """Interval of a ratio of two independent rates from the intervals of each; it stays honest when one is zero.

    Args:
        numerator: A rate with its interval.
        denominator: Another, at the same level.

    Returns:
        The ratio; its upper end is infinite when the denominator's interval reaches zero, its value NaN when both
        are 0.

    Source: Donner and Zou, *Closed-form confidence intervals for functions of the normal mean and standard
    deviation*, Statistical Methods in Medical Research 2012 (MOVER).
    """
    p, l1, u1 = numerator.value, numerator.low, numerator.high
    q, l2, u2 = denominator.value, denominator.low, denominator.high
    if math.isnan(p) or math.isnan(q):
        return Estimate(math.nan, 0.0, math.inf, numerator.level, "MOVER of Wilson")
    both = p * q
    spread = l1 * (2 * p - l1)
    root = math.sqrt(max(0.0, both * both - spread * u2 * (2 * q - u2)))
    low = spread / (both + root) if spread > 0 else 0.0
    high = math.inf
    if l2 > 0:
        scale = l2 * (2 * q - l2)
        high = (both + math.sqrt(max(0.0, both * both - u1 * (2 * p - u1) * scale))) / scale
    return Estimate(ratio(p, q), low, high, numerator.level, "MOVER of Wilson")


def hull(first: Estimate, second: Estimate) -> Estimate:
    """Return the smallest interval that holds both, with the first one's value: at least as cautious as either."""
    low, high = np.fmin(first.low, second.low), np.fmax(first.high, second.high)
    return Estimate(first.value, float(low), float(high), first.level, f"wider of {first.method} and {second.method}")


def ratio(numerator: float, denominator: float) -> float:
    """Divide; 0/0 is NaN and anything else over 0 is infinite."""
    if denominator != 0:
        return numerator / denominator
    return math.nan if numerator == 0 or math.isnan(numerator) else math.inf
