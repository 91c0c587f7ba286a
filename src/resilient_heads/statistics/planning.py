"""How many trials a margin of error needs, and what it costs to draw several conclusions at once."""

import math
from collections.abc import Iterable, Sequence

from resilient_heads.checks import real_number, whole_number
from resilient_heads.errors import ArgumentError
from resilient_heads.statistics.intervals import DEFAULT_LEVEL, Estimate, normal_quantile


def sample_size(
    population: float,
    margin: float,
    *,
    rate: float | Estimate,
    level: float = DEFAULT_LEVEL,
    replacement: bool = False,
) -> int:
    """Return how many faults to inject for a margin of error, out of a finite number of possible faults.

    Args:
        population: Number of possible faults, such as bits times images; may be infinite.
        margin: Half-width of the interval, as a fraction of 1.
        rate: Expected rate. Pass the estimate of a pilot campaign: then the end of its interval that needs the most
            trials is planned for. A rate of 0.5 needs the most trials of all, for a rare outcome hundreds of times too
            many.
        level: Confidence level.
        replacement: Whether a fault may be drawn twice, as the campaigns of this library do; the size of the
            population then has no effect.

    Returns:
        The number of faults, at least 1.

    Raises:
        ArgumentError: A value out of its range.

    >>> sample_size(1e9, 0.01, rate=0.5, level=0.95)
    9604
    >>> from resilient_heads.statistics import clopper_pearson
    >>> pilot = clopper_pearson(12, 2000)
    >>> sample_size(math.inf, 0.001, rate=pilot), sample_size(math.inf, 0.001, rate=0.5)
    (78896, 1658725)

    Source: Leveugle et al., *Statistical fault injection: quantified error and confidence*, DATE 2009, equation 4.
    """
    population, rate = real_number("population", population, least=1), _planned_rate(rate)
    margin, z = real_number("margin", margin, above=0), normal_quantile(level)
    unlimited = z * z * rate * (1 - rate) / (margin * margin)
    if replacement or math.isinf(population) or unlimited == 0:
        return max(math.ceil(unlimited), 1)
    return math.ceil(population / (1 + (population - 1) / unlimited))


def margin_of_error(
    population: float,
    trials: int,
    *,
    rate: float | Estimate,
    level: float = DEFAULT_LEVEL,
    replacement: bool = False,
) -> float:
    """Return the half-width of the interval that a number of trials gives; the inverse of :func:`sample_size`.

    Args:
        population: Number of possible faults; may be infinite.
        trials: Number of faults injected.
        rate: Expected rate, or the estimate of a pilot; see :func:`sample_size`.
        level: Confidence level.
        replacement: Whether a fault may be drawn twice.

    Raises:
        ArgumentError: A value out of its range, or more trials than possible faults.

    >>> round(margin_of_error(1e9, 9604, rate=0.5, level=0.95), 4)
    0.01

    Source: Leveugle et al., DATE 2009, equation 5.
    """
    population, rate = real_number("population", population, least=1), _planned_rate(rate)
    trials = whole_number("trials", trials, least=1)
    if not replacement and trials > population:
        raise ArgumentError(f"trials must be at most the population, {population:g}, found {trials}.")
    left = 1.0 if replacement or math.isinf(population) else (population - trials) / max(population - 1, 1)
    return normal_quantile(level) * math.sqrt(rate * (1 - rate) / trials * left)


def bonferroni(level: float, figures: int) -> float:
    """Return the level for each of several intervals, so that all of them hold together with probability ``level``.

    Raises:
        ArgumentError: ``level`` is not between 0 and 1, or ``figures`` is not a whole number of at least 1.

    >>> round(bonferroni(0.99, 20), 6)
    0.9995
    """
    normal_quantile(level)
    return 1 - (1 - level) / whole_number("figures", figures, least=1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for several tests: with probability 0.99, all rejections below 0.01 are right.

    Raises:
        ArgumentError: A p-value outside ``[0, 1]``, or no sequence.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]

    Source: Holm, *A simple sequentially rejective multiple test procedure*, Scandinavian Journal of Statistics 1979.
    """
    if not isinstance(p_values, Iterable):
        raise ArgumentError(f"p_values must be a sequence of numbers, such as [0.01, 0.04]; found {p_values!r}.")
    p_values = list(p_values)
    for position, value in enumerate(p_values):
        real_number(f"p_values[{position}]", value, least=0, most=1)
    adjusted = [1.0] * len(p_values)
    least = 0.0
    for rank, position in enumerate(sorted(range(len(p_values)), key=lambda position: p_values[position])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[position]))
        adjusted[position] = least
    return adjusted


def _planned_rate(rate: float | Estimate) -> float:
    """Return a rate; of an estimate's interval, the rate that needs the most trials."""
    if isinstance(rate, Estimate):
        rate = min(max(0.5, rate.low), rate.high)
    return real_number("rate", rate, least=0, most=1)
