"""Intervals of rates and means of weighted trials that share their images."""

import functools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from resilient_heads.checks import instance_of
from resilient_heads.errors import ArgumentError
from resilient_heads.statistics.intervals import (
    DEFAULT_LEVEL,
    MIN_IMAGES,
    NO_TRIALS,
    RESAMPLES,
    TOO_FEW_IMAGES,
    Estimate,
    Floats,
    normal_quantile,
)
from resilient_heads.statistics.sample import Sample, group_sums, influence

_RATE = "Clopper-Pearson, effective size"
_MEAN = "bootstrap-t over images"


def weighted_rate(events: NDArray[np.bool_], sample: Sample, *, level: float = DEFAULT_LEVEL) -> Estimate:
    """Return the interval of a rate from weighted trials that share their images.

    This is Clopper and Pearson's interval at an effective number of trials. The effective number is the smallest of
    three: the one of independent trials within strata, the one that the variance between draws of an image implies
    (fragile images are fragile at every site), and the one that the variance between images implies (trials on one
    image are alike).

    An event that no trial showed may have happened in the stratum where one trial has the largest weight. So a stratum
    with few trials widens the interval upwards, even without events. Downwards, a stratum whose trials all had the
    outcome may hold one trial that had not. With one site and distinct images the result is Clopper and Pearson's
    interval.

    Args:
        events: ``(N,)``, whether each trial had the outcome.
        sample: The N trials.
        level: Confidence level.

    Returns:
        The rate; NaN with the interval [0, 1] if there are no trials.

    Raises:
        ArgumentError: ``events`` are not N booleans, or ``level`` is not between 0 and 1.

    >>> number = np.arange(400)
    >>> site = np.zeros(400, dtype=int)
    >>> sample = Sample(weight=np.full(400, 1 / 400), site=site, stratum=site, image=number, image_draw=number)
    >>> print(weighted_rate(number < 8, sample, level=0.95))
    0.02 [0.00867, 0.039]

    Source: Korn and Graubard, *Survey Methodology* 24, 1998, for the effective size; Fay and Feuer, *Statistics in
    Medicine* 16, 1997, for the weight of an event that no trial showed.
    """
    _check_length("events", events, sample)
    if events.dtype != np.bool_:
        raise ArgumentError(f"events must be booleans, such as outcome == 2; found {events.dtype}.")
    return rate_intervals(events, sample)(level)


def rate_intervals(events: NDArray[np.bool_], sample: Sample) -> Callable[[float], Estimate]:
    """Return a function from a level to the interval of :func:`weighted_rate`; intervals of two levels are nested."""
    if not len(sample) or not sample.weight.sum() > 0:
        return _unknown_rate
    weighted = influence(sample, events.astype(np.float64))
    rate = min(max(weighted.value, 0.0), 1.0)
    counted = sample.weight > 0
    with_event = np.bincount(sample.stratum, weights=events & counted)
    without = np.bincount(sample.stratum, weights=~events & counted)
    if not with_event.any() or not without.any():
        rate = float(with_event.any())  # by rounding, the sum of the weights may differ from 1
    variance = max(weighted.variance(), weighted.variance(sample.image_draw), weighted.variance(sample.image))
    bernoulli = rate * (1 - rate)
    upper_size = bernoulli / variance + 1 if variance > 0 and bernoulli > 0 else math.inf
    trial_weight = _stratum_weights(sample)
    # Strata whose trials all had the outcome show no variance: assume that one trial of each had not.
    full = (without == 0) & (with_event > 1)
    lower_variance = variance + float(np.square(trial_weight[full]).sum())
    lower_size = bernoulli / lower_variance + 1 if lower_variance > 0 and bernoulli > 0 else math.inf
    unseen_event = float(trial_weight[without > 0].max(initial=0.0))
    unseen_miss = float(trial_weight[with_event > 0].max(initial=0.0))

    def interval(level: float) -> Estimate:
        normal_quantile(level)
        high = _upper_end(rate, upper_size, unseen_event, level)
        low = 1 - _upper_end(1 - rate, lower_size, unseen_miss, level)
        return Estimate(rate, min(max(low, 0.0), rate), max(min(high, 1.0), rate), level, _RATE)

    return interval


def _check_length(name: str, values: NDArray[np.generic], sample: Sample) -> None:
    """Raise ArgumentError unless there is one value for each trial."""
    instance_of("sample", sample, Sample, example="rh.statistics.Sample(weight=..., site=..., ...)")
    if not isinstance(values, np.ndarray) or values.shape != (len(sample),):
        found = values.shape if isinstance(values, np.ndarray) else type(values).__name__
        raise ArgumentError(
            f"{name} must be a NumPy array of shape ({len(sample)},), one entry a trial; found {found}."
        )


def _unknown_rate(level: float) -> Estimate:
    """Return the interval of a rate without trials."""
    normal_quantile(level)
    return Estimate(math.nan, 0.0, 1.0, level, NO_TRIALS)


def _stratum_weights(sample: Sample) -> Floats:
    """Return the weight of one trial of each stratum, ``(H,)``; the self-weighted mean where weights differ."""
    most = np.zeros(int(sample.stratum.max()) + 1)
    np.maximum.at(most, sample.stratum, sample.weight)
    least = np.full(len(most), math.inf)
    np.minimum.at(least, sample.stratum, sample.weight)
    total = np.bincount(sample.stratum, weights=sample.weight)
    square = np.bincount(sample.stratum, weights=np.square(sample.weight))
    mean: Floats = np.divide(square, total, out=np.zeros(len(most)), where=total > 0)
    return np.where(least < most, mean, most)


def _upper_end(rate: float, effective: float, unseen: float, level: float) -> float:
    """Return the upper end of the interval if one more event, of weight ``unseen``, may have been missed."""
    from scipy.special import betaincinv  # 0.2 s, and only intervals need it

    if rate >= 1:
        return 1.0
    unseen = max(unseen, 1 / effective)
    if not unseen > 0:
        return rate
    # Match the first two moments of the weighted events and the unseen one. Equal weights of 1/n give Clopper and
    # Pearson's x + 1 events in n trials.
    total = (rate + unseen) / (rate / effective + unseen * unseen)
    return float(betaincinv((rate + unseen) * total, (1 - rate) * total, 0.5 + level / 2))


def weighted_mean(values: Floats, sample: Sample, *, level: float = DEFAULT_LEVEL) -> Estimate:
    """Return the interval of a mean from weighted trials, by a studentised bootstrap over images (bootstrap-t).

    Args:
        values: ``(N,)``. The mean of a site leaves out NaN values; an infinite value makes the mean infinite.
        sample: The N trials.
        level: Confidence level.

    Returns:
        The mean. With fewer than :data:`~resilient_heads.statistics.intervals.MIN_IMAGES` images both ends are NaN,
        since they say nothing about other images. If no value is negative, the lower end is at least 0. If all values
        are equal, the upper end is NaN: other images may differ by any amount.

    Raises:
        ArgumentError: ``values`` are not N numbers, or ``level`` is not between 0 and 1.

    >>> number = np.arange(400)
    >>> site = np.zeros(400, dtype=int)
    >>> sample = Sample(weight=np.full(400, 1 / 400), site=site, stratum=site, image=number, image_draw=number)
    >>> round(weighted_mean(number / 400, sample).value, 6)
    0.49875

    Source: Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993, chapter 12.
    """
    normal_quantile(level)
    _check_length("values", values, sample)
    infinite = np.isinf(values)
    weighted = influence(sample, np.where(infinite, 0.0, values))
    value = math.inf if infinite.any() else weighted.value
    images = len(np.unique(sample.image))
    if math.isnan(value):
        reason = "a site has only NaN values" if sample.weight.sum() > 0 else NO_TRIALS
        return Estimate(value, math.nan, math.nan, level, reason)
    if images < MIN_IMAGES:
        return Estimate(value, math.nan, math.nan, level, TOO_FEW_IMAGES)
    least = 0.0 if not (values < 0).any() else -math.inf
    sums = group_sums(weighted.parts, sample.image)
    if math.isinf(value):
        infinite_trials = group_sums(infinite.astype(np.float64), sample.image)
        counts = bootstrap_counts(images)
        means = np.where(counts @ infinite_trials > 0, math.inf, weighted.value + counts @ sums)
        low = float(np.quantile(means, (1 - level) / 2, method="inverted_cdf"))
        return Estimate(value, max(low, least), math.inf, level, _MEAN)
    if not sums.any():
        return Estimate(value, value, math.nan, level, _MEAN)
    down, up = bootstrap_t(sums, level=level)
    return Estimate(value, max(value - down, least), value + up, level, _MEAN)


def bootstrap_t(sums: Floats, *, level: float = DEFAULT_LEVEL) -> tuple[float, float]:
    """Return how far the interval of an estimate reaches down and up, by the studentised bootstrap over images.

    Args:
        sums: ``(I,)``, the contribution of each image to the error; see
            :class:`~resilient_heads.statistics.sample.Influence`.
        level: Confidence level.

    Returns:
        Two distances of at least 0. Each end leaves out a quarter of ``1 - level``. Both are 0 if all sums are 0.
    """
    images = len(sums)
    normal_quantile(level)
    scale = float(np.abs(sums).max(initial=0.0))
    if scale == 0 or images < 2:
        return 0.0, 0.0
    parts = sums / scale  # without this, the square of 1e200 would overflow
    parts = parts - parts.mean()
    counts = bootstrap_counts(images)
    moved = counts @ parts
    spread = np.sqrt(np.maximum(counts @ np.square(parts) - moved * moved / images, 0.0))
    # A resample without spread gives 0/0, which is left out, or an infinite ratio, which lies beyond all others.
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = moved / spread
    ratios = ratios[~np.isnan(ratios)]
    # Half of the nominal tail: with the full tail, skewed losses on a few hundred images are covered 96 to 98 % of the
    # time instead of 99 %.
    tail = (1 - level) / 4
    low, high = np.quantile(ratios, [tail, 1 - tail], method="inverted_cdf")
    error = scale * math.sqrt(float(np.square(parts).sum()) * images / (images - 1))
    return max(float(high), 0.0) * error, max(-float(low), 0.0) * error


@functools.lru_cache(maxsize=2)
def bootstrap_counts(images: int) -> Floats:
    """Return how often each resample draws each image, ``(RESAMPLES, images)``; each row sums to ``images``."""
    generator = np.random.Generator(np.random.Philox(0))
    counts = generator.multinomial(images, np.full(images, 1 / images), size=RESAMPLES).astype(np.float64)
    counts.flags.writeable = False
    return counts
