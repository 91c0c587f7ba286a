"""Intervals of rates and means of weighted trials that share their images."""

import functools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from resilient_heads.statistics.intervals import DEFAULT_LEVEL, MIN_IMAGES, RESAMPLES, Estimate, Floats, normal_quantile
from resilient_heads.statistics.sample import Sample, group_sums, influence

_RATE = "Clopper-Pearson, effective size"
_MEAN = "bootstrap-t over images"


def weighted_rate(hits: NDArray[np.bool_], sample: Sample, *, level: float = DEFAULT_LEVEL) -> Estimate:
    """Interval of a rate from weighted trials that share their images.

    Clopper and Pearson's at an effective number of trials, the smallest of three: that of independent trials within
    strata; the one that the variance between trial numbers implies, since fragile images are fragile in every layer;
    and the one that the variance between images implies, since trials on one image are alike. What an event adds that
    nobody saw is taken from the stratum where a single trial counts most, so a stratum struck seldom widens the
    interval even if it showed nothing; downwards, each stratum of which all trials had the outcome may have had one
    that did not. With one layer and distinct images this is Clopper and Pearson's interval.

    Args:
        hits: ``(N,)``, whether a trial had the outcome.
        sample: The N trials.
        level: Confidence level.

    Returns:
        The rate; NaN with the interval [0, 1] where there is no trial.

    Source: Korn and Graubard, *Survey Methodology* 24, 1998, for the effective size; Fay and Feuer, *Statistics in
    Medicine* 16, 1997, for the weight of the event that was not seen.
    """
    return rate_intervals(hits, sample)(level)


def rate_intervals(hits: NDArray[np.bool_], sample: Sample) -> Callable[[float], Estimate]:
    """Return what gives the interval of :func:`weighted_rate` for any level; of two levels, one holds the other."""
    if not len(sample) or not sample.weight.sum() > 0:
        return _nothing_known
    found = influence(sample, hits.astype(np.float64))
    rate = min(max(found.value, 0.0), 1.0)
    counted = sample.weight > 0
    events = np.bincount(sample.stratum, weights=hits & counted)
    misses = np.bincount(sample.stratum, weights=~hits & counted)
    if not events.any() or not misses.any():
        rate = float(events.any())  # the sum of the weights may miss 1 by rounding
    variance = max(found.variance(), found.variance(sample.image_draw), found.variance(sample.image))
    own = rate * (1 - rate)
    effective = own / variance + 1 if variance > 0 and own > 0 else math.inf
    each = _weights(sample)
    # Trials that all had the outcome seem not to vary: downwards, one of each such stratum may have missed it.
    full = (misses == 0) & (events > 1)
    missed = float(np.square(each[full]).sum())
    lower = own / (variance + missed) + 1 if variance + missed > 0 and own > 0 else math.inf
    above, below = float(each[misses > 0].max(initial=0.0)), float(each[events > 0].max(initial=0.0))

    def interval(level: float) -> Estimate:
        normal_quantile(level)
        high = _upper(rate, effective, above, level)
        low = 1 - _upper(1 - rate, lower, below, level)
        return Estimate(rate, min(max(low, 0.0), rate), max(min(high, 1.0), rate), level, _RATE)

    return interval


def _nothing_known(level: float) -> Estimate:
    """Return the interval of a rate without trials."""
    normal_quantile(level)
    return Estimate(math.nan, 0.0, 1.0, level, _RATE)


def _weights(sample: Sample) -> Floats:
    """Return what a trial of each stratum counts, ``(H,)``: where they differ, the mean weighted by itself."""
    most = np.zeros(int(sample.stratum.max()) + 1)
    np.maximum.at(most, sample.stratum, sample.weight)
    least = np.full(len(most), math.inf)
    np.minimum.at(least, sample.stratum, sample.weight)
    total = np.bincount(sample.stratum, weights=sample.weight)
    square = np.bincount(sample.stratum, weights=np.square(sample.weight))
    mean: Floats = np.divide(square, total, out=np.zeros(len(most)), where=total > 0)
    return np.where(least < most, mean, most)


def _upper(rate: float, effective: float, unseen: float, level: float) -> float:
    """Return the upper end when one more event, of weight ``unseen``, may have been missed."""
    from scipy.special import betaincinv  # 0.2 s, and only intervals need it

    if rate >= 1:
        return 1.0
    unseen = max(unseen, 1 / effective)
    if not unseen > 0:
        return rate
    # Moments of the weighted events with the unseen one; equal weights of 1/n give x + 1 events among n trials.
    total = (rate + unseen) / (rate / effective + unseen * unseen)
    return float(betaincinv((rate + unseen) * total, (1 - rate) * total, 0.5 + level / 2))


def weighted_mean(values: Floats, sample: Sample, *, level: float = DEFAULT_LEVEL) -> Estimate:
    """Interval of a mean from weighted trials, by a studentised bootstrap over images.

    Args:
        values: ``(N,)``; NaN is left out of its layer's mean, an infinite value makes the mean infinite.
        sample: The N trials.
        level: Confidence level.

    Returns:
        The mean. With fewer than :data:`~resilient_heads.statistics.intervals.MIN_IMAGES` images its ends are NaN:
        nothing can be said of other images. If no value is negative, neither is the lower end. If all values agree
        the upper end is NaN: other images may differ, nobody knows how far.

    Source: Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993, chapter 12.
    """
    infinite = np.isinf(values)
    finite = np.where(infinite, 0.0, values)
    found = influence(sample, finite)
    value = math.inf if infinite.any() else found.value
    images = len(np.unique(sample.image))
    if images < MIN_IMAGES:
        return Estimate(value, math.nan, math.nan, level, "too few images")
    if math.isnan(value):
        return Estimate(value, math.nan, math.nan, level, _MEAN)
    least = 0.0 if not (values < 0).any() else -math.inf
    sums = group_sums(found.parts, sample.image)
    if math.isinf(value):
        struck = group_sums(infinite.astype(np.float64), sample.image)
        counts = bootstrap_weights(images)
        means = np.where(counts @ struck > 0, math.inf, found.value + counts @ sums)
        low = float(np.quantile(means, (1 - level) / 2, method="inverted_cdf"))
        return Estimate(value, max(low, least), math.inf, level, _MEAN)
    if not sums.any():
        return Estimate(value, value, math.nan, level, _MEAN)
    down, up = studentised(sums, level=level)
    return Estimate(value, max(value - down, least), value + up, level, _MEAN)


def studentised(sums: Floats, *, level: float = DEFAULT_LEVEL) -> tuple[float, float]:
    """Return how far the interval of an estimate reaches down and up, by the bootstrap-t over images.

    Args:
        sums: ``(I,)``, each image's part of the error; see :class:`~resilient_heads.statistics.sample.Influence`.
        level: Confidence level.

    Returns:
        Two distances, at least 0, with a quarter of ``1 - level`` beyond each; both 0 where no part differs from 0.
    """
    images = len(sums)
    normal_quantile(level)
    scale = float(np.abs(sums).max(initial=0.0))
    if scale == 0 or images < 2:
        return 0.0, 0.0
    parts = sums / scale  # squares of 1e200 would overflow
    parts = parts - parts.mean()
    counts = bootstrap_weights(images)
    moved = counts @ parts
    spread = np.sqrt(np.maximum(counts @ np.square(parts) - moved * moved / images, 0.0))
    # A resample without any spread says nothing, or, where it moved, that the end is beyond all others.
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = moved / spread
    ratios = ratios[~np.isnan(ratios)]
    # Half the tail: with skewed losses on a few hundred images the plain bootstrap-t covers 96 to 98 % instead of 99 %.
    tail = (1 - level) / 4
    low, high = np.quantile(ratios, [tail, 1 - tail], method="inverted_cdf")
    error = scale * math.sqrt(float(np.square(parts).sum()) * images / (images - 1))
    return max(float(high), 0.0) * error, max(-float(low), 0.0) * error


@functools.lru_cache(maxsize=2)
def bootstrap_weights(images: int, *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Return how often a bootstrap draws each image, ``(resamples, images)``; rows sum to ``images``."""
    generator = np.random.Generator(np.random.Philox(seed))
    weights = generator.multinomial(images, np.full(images, 1 / images), size=resamples).astype(np.float64)
    weights.flags.writeable = False
    return weights
