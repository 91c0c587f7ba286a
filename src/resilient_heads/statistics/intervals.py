"""Confidence intervals of rates, means, differences and ratios."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from resilient_heads.checks import instance_of, real_number, whole_number
from resilient_heads.errors import ArgumentError

Floats = NDArray[np.float64]

DEFAULT_LEVEL = 0.99
RESAMPLES = 2000
MIN_IMAGES = 10
"""Smallest number of images for which an interval over images is given."""
NO_TRIALS = "no trials"
TOO_FEW_IMAGES = f"fewer than {MIN_IMAGES} images"
NOT_DEFINED = "not defined"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its confidence interval; ``0.01 in estimate`` says whether the interval holds a value.

    Attributes:
        value: The point estimate; NaN if there is nothing to estimate from. ``method`` then says why.
        low: Lower end of the interval.
        high: Upper end of the interval; infinite for a ratio whose denominator may be 0.
        level: Confidence level, such as 0.99.
        method: Name of the method that made the interval.

    >>> estimate = wilson(0.05, 200, level=0.95)
    >>> print(estimate)
    0.05 [0.0274, 0.0896]
    >>> 0.03 in estimate
    True
    """

    value: float
    low: float
    high: float
    level: float
    method: str

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        if math.isnan(self.value):
            return f"unknown ({self.method})"
        if math.isnan(self.low) and math.isnan(self.high):
            return f"{self.value:.3g} (no interval: {self.method})"
        low, high = ("?" if math.isnan(end) else f"{end:.3g}" for end in (self.low, self.high))
        return f"{self.value:.3g} [{low}, {high}]"

    def __repr__(self) -> str:
        return f"<Estimate {self}, level {self.level:.6g}, {self.method}>"

    def scaled(self, factor: float) -> "Estimate":
        """Return the figure and its interval times a known number of at least 0."""
        value, low, high = (end * factor for end in (self.value, self.low, self.high))
        return Estimate(value, low, high, self.level, self.method)


def normal_quantile(level: float) -> float:
    """Return the two-sided quantile of the standard normal distribution: 2.576 for 0.99.

    Raises:
        ArgumentError: ``level`` is not between 0 and 1.
    """
    real_number("level", level, above=0, below=1)
    return NormalDist().inv_cdf(0.5 + level / 2)


def wilson(rate: float, trials: float, *, level: float = DEFAULT_LEVEL) -> Estimate:
    """Return Wilson's score interval of a rate.

    Args:
        rate: Observed rate, in ``[0, 1]``.
        trials: Number of trials; an effective number of trials need not be whole.
        level: Confidence level.

    Raises:
        ArgumentError: A number is out of its range.

    >>> print(wilson(0, 100, level=0.95))
    0 [0, 0.037]

    Source: Wilson, *Probable inference, the law of succession, and statistical inference*, JASA 1927.
    """
    z = normal_quantile(level)
    rate, trials = real_number("rate", rate, least=0, most=1), real_number("trials", trials, least=0)
    if trials == 0:
        return Estimate(math.nan, 0.0, 1.0, level, NO_TRIALS)
    centre = rate + z * z / (2 * trials)
    spread = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    # For rates of 0 and 1 one end is exactly 0 or 1; rounding would leave it 1e-19 off.
    low = 0.0 if rate <= 0 else max(0.0, (centre - spread) / scale)
    high = 1.0 if rate >= 1 else min(1.0, (centre + spread) / scale)
    return Estimate(rate, low, high, level, "wilson")


def clopper_pearson(events: int, trials: int, *, level: float = DEFAULT_LEVEL) -> Estimate:
    """Return Clopper and Pearson's interval of a rate, which covers every true rate with at least its level.

    Args:
        events: Number of trials with the outcome.
        trials: Number of all trials.
        level: Confidence level.

    Raises:
        ArgumentError: ``events`` is not from 0 to ``trials``, or ``level`` is not between 0 and 1.

    >>> print(clopper_pearson(0, 100, level=0.95))
    0 [0, 0.0362]

    Source: Clopper and Pearson, *The use of confidence or fiducial limits*, Biometrika 1934.
    """
    from scipy.special import betaincinv  # 0.2 s, and only intervals need it

    normal_quantile(level)
    whole_number("trials", trials, least=0)
    whole_number("events", events, least=0, most=trials)
    if not trials:
        return Estimate(math.nan, 0.0, 1.0, level, NO_TRIALS)
    tail = (1 - level) / 2
    low = float(betaincinv(events, trials - events + 1, tail)) if events else 0.0
    high = float(betaincinv(events + 1, trials - events, 1 - tail)) if events < trials else 1.0
    return Estimate(events / trials, low, high, level, "clopper-pearson")


def mean_interval(values: Floats, *, level: float = DEFAULT_LEVEL) -> Estimate:
    """Return the interval of the mean of independent values, by the central limit theorem.

    Args:
        values: ``(I,)``, one value for each image.
        level: Confidence level.

    Returns:
        The mean. With fewer than :data:`MIN_IMAGES` images the ends are NaN.

    Raises:
        ArgumentError: ``values`` is not a vector of at least one number.

    >>> mean_interval(np.arange(100.0)).value
    49.5
    """
    values = vector("values", values)
    mean = float(values.mean())
    if len(values) < MIN_IMAGES:
        return Estimate(mean, math.nan, math.nan, level, TOO_FEW_IMAGES)
    spread = normal_quantile(level) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Estimate(mean, mean - spread, mean + spread, level, "normal")


def vector(name: str, values: object) -> Floats:
    """Return a vector of at least one number as float64, or raise ArgumentError."""
    try:
        numbers: Floats = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError):
        numbers = np.empty(0)
    if numbers.ndim != 1 or not len(numbers):
        raise ArgumentError(
            f"{name} must be a vector of at least one number, such as [0.1, 0.2]; found {values!r:.80}."
        )
    return numbers


def difference_of_rates(first: Estimate, second: Estimate) -> Estimate:
    """Return the interval of ``first - second`` from the intervals of two rates.

    The interval holds for independent rates. For rates that rise together it is wider than necessary.

    Args:
        first: A rate with its interval.
        second: The rate to subtract, at the same level.

    Raises:
        ArgumentError: An argument is no :class:`Estimate`, or the levels differ.

    >>> print(difference_of_rates(wilson(56 / 70, 70, level=0.95), wilson(48 / 80, 80, level=0.95)))
    0.2 [0.0524, 0.334]

    Source: Newcombe, *Interval estimation for the difference between independent proportions*, Statistics in Medicine
    1998, method 10.
    """
    _check_pair(("first", first), ("second", second))
    value = first.value - second.value
    down = math.hypot(first.value - first.low, second.high - second.value)
    up = math.hypot(first.high - first.value, second.value - second.low)
    return Estimate(value, value - down, value + up, first.level, "Newcombe")


def ratio_of_rates(numerator: Estimate, denominator: Estimate) -> Estimate:
    """Return the interval of a ratio of two independent rates; it stays valid if one of the rates is 0.

    Args:
        numerator: A rate with its interval.
        denominator: Another rate, at the same level.

    Returns:
        The ratio. Its upper end is infinite if the denominator's interval reaches 0; its value is NaN if both rates
        are 0.

    Raises:
        ArgumentError: An argument is no :class:`Estimate`, or the levels differ.

    >>> print(ratio_of_rates(wilson(0.2, 1000), wilson(0.1, 1000)))
    2 [1.49, 2.68]

    Source: Donner and Zou, *Closed-form confidence intervals for functions of the normal mean and standard
    deviation*, Statistical Methods in Medical Research 2012 (MOVER).
    """
    _check_pair(("numerator", numerator), ("denominator", denominator))
    p, l1, u1 = numerator.value, numerator.low, numerator.high
    q, l2, u2 = denominator.value, denominator.low, denominator.high
    if math.isnan(p) or math.isnan(q):
        return Estimate(math.nan, 0.0, math.inf, numerator.level, NOT_DEFINED)
    product = p * q
    spread = l1 * (2 * p - l1)
    root = math.sqrt(max(0.0, product * product - spread * u2 * (2 * q - u2)))
    low = spread / (product + root) if spread > 0 else 0.0
    high = math.inf
    if l2 > 0:
        scale = l2 * (2 * q - l2)
        high = (product + math.sqrt(max(0.0, product * product - u1 * (2 * p - u1) * scale))) / scale
    value = ratio(p, q)
    return Estimate(value, low, high, numerator.level, "MOVER" if value == value else "0 divided by 0")


def ratio(numerator: float, denominator: float) -> float:
    """Divide: 0/0 is NaN, and every other number over 0 is infinite."""
    if denominator != 0:
        return numerator / denominator
    return math.nan if numerator == 0 or math.isnan(numerator) else math.inf


def _check_pair(*named: tuple[str, object]) -> None:
    """Raise ArgumentError unless two arguments are estimates of one level."""
    first, second = (instance_of(name, value, Estimate, example="clopper_pearson(3, 1000)") for name, value in named)
    if first.level != second.level:
        names = " and ".join(name for name, _ in named)
        raise ArgumentError(f"{names} must have the same level, found {first.level} and {second.level}.")
