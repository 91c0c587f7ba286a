"""Confidence intervals for rates, means and ratios."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from resilient_heads.checks import real_number, whole_number

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
        ArgumentError: The level is not between 0 and 1.
    """
    real_number("level", level, above=0, below=1)
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


def clopper_pearson(events: int, trials: int, *, level: float = DEFAULT_LEVEL) -> Estimate:
    """Clopper and Pearson's interval of a rate: it covers at least its level, whatever the rate.

    Args:
        events: Trials with the outcome.
        trials: All trials.
        level: Confidence level.

    Raises:
        ArgumentError: More events than trials, or a level that is none.

    Source: Clopper and Pearson, *The use of confidence or fiducial limits*, Biometrika 1934.
    """
    from scipy.special import betaincinv  # 0.2 s, and only intervals need it

    normal_quantile(level)
    whole_number("trials", trials, least=0)
    whole_number("events", events, least=0, most=trials)
    if not trials:
        return Estimate(math.nan, 0.0, 1.0, level, "clopper-pearson")
    tail = (1 - level) / 2
    low = float(betaincinv(events, trials - events + 1, tail)) if events else 0.0
    high = float(betaincinv(events + 1, trials - events, 1 - tail)) if events < trials else 1.0
    return Estimate(events / trials, low, high, level, "clopper-pearson")


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


def difference_of_rates(first: Estimate, second: Estimate) -> Estimate:
    """Interval of the difference of two rates that are independent or rise together, from the intervals of each.

    Args:
        first: A rate with its interval.
        second: What is subtracted, at the same level.

    Source: Newcombe, *Interval estimation for the difference between independent proportions*, Statistics in Medicine
    1998, method 10.
    """
    value = first.value - second.value
    down = math.hypot(first.value - first.low, second.high - second.value)
    up = math.hypot(first.high - first.value, second.value - second.low)
    return Estimate(value, value - down, value + up, first.level, "Newcombe")


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
        return Estimate(math.nan, 0.0, math.inf, numerator.level, "MOVER")
    both = p * q
    spread = l1 * (2 * p - l1)
    root = math.sqrt(max(0.0, both * both - spread * u2 * (2 * q - u2)))
    low = spread / (both + root) if spread > 0 else 0.0
    high = math.inf
    if l2 > 0:
        scale = l2 * (2 * q - l2)
        high = (both + math.sqrt(max(0.0, both * both - u1 * (2 * p - u1) * scale))) / scale
    return Estimate(ratio(p, q), low, high, numerator.level, "MOVER")


def ratio(numerator: float, denominator: float) -> float:
    """Divide; 0/0 is NaN and anything else over 0 is infinite."""
    if denominator != 0:
        return numerator / denominator
    return math.nan if numerator == 0 or math.isnan(numerator) else math.inf
