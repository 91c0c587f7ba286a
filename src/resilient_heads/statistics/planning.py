"""How many trials a margin of error needs, and what it costs to draw several conclusions at once."""

import math
from collections.abc import Sequence

from resilient_heads.checks import real_number
from resilient_heads.statistics.intervals import DEFAULT_LEVEL, normal_quantile


def sample_size(
    population: float, margin: float, *, level: float = DEFAULT_LEVEL, rate: float = 0.5, replacement: bool = False
) -> int:
    """Return how many faults to inject for a margin of error, out of a finite number of possible faults.

    Args:
        population: Number of possible faults, such as bits times images; may be infinite.
        margin: Half-width of the interval, as a fraction of 1.
        level: Confidence level.
        rate: Expected rate; 0.5 needs the most trials.
        replacement: Whether a fault may be drawn twice, as the campaigns of this library do; the size of the
            population then has no effect.

    Raises:
        ArgumentError: A value out of its range.

    >>> sample_size(1e9, 0.01, level=0.95)
    9604

    Source: Leveugle et al., *Statistical fault injection: quantified error and confidence*, DATE 2009, equation 4.
    """
    _check(population, rate)
    real_number("margin", margin, above=0)
    z = normal_quantile(level)
    unlimited = z * z * rate * (1 - rate) / (margin * margin)
    if replacement or math.isinf(population):
        return math.ceil(unlimited)
    if rate in (0, 1):
        return 1
    return math.ceil(population / (1 + (population - 1) / unlimited))


def margin_of_error(
    population: float, trials: int, *, level: float = DEFAULT_LEVEL, rate: float = 0.5, replacement: bool = False
) -> float:
    """Return the half-width of the interval that a number of trials gives; the inverse of :func:`sample_size`.

    Args:
        population: Number of possible faults; may be infinite.
        trials: Number of faults injected.
        level: Confidence level.
        rate: Expected rate; 0.5 gives the widest interval.
        replacement: Whether a fault may be drawn twice.

    Raises:
        ArgumentError: A value out of its range, or more trials than possible faults.

    >>> round(margin_of_error(1e9, 9604, level=0.95), 4)
    0.01

    Source: Leveugle et al., DATE 2009, equation 5.
    """
    _check(population, rate)
    real_number("trials", trials, least=1, most=None if replacement else population)
    left = 1.0 if replacement or math.isinf(population) else (population - trials) / max(population - 1, 1)
    return normal_quantile(level) * math.sqrt(rate * (1 - rate) / trials * left)


def bonferroni(level: float, figures: int) -> float:
    """Return the level for each of several intervals, so that all of them hold together with probability ``level``.

    Raises:
        ArgumentError: ``level`` is not between 0 and 1.

    >>> round(bonferroni(0.99, 20), 6)
    0.9995
    """
    normal_quantile(level)
    return 1 - (1 - level) / max(figures, 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for several tests: with probability 0.99, all rejections below 0.01 are right.

    Raises:
        ArgumentError: A p-value outside ``[0, 1]``.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]

    Source: Holm, *A simple sequentially rejective multiple test procedure*, Scandinavian Journal of Statistics 1979.
    """
    for position, value in enumerate(p_values):
        real_number(f"p_values[{position}]", value, least=0, most=1)
    adjusted = [1.0] * len(p_values)
    least = 0.0
    for rank, position in enumerate(sorted(range(len(p_values)), key=lambda position: p_values[position])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[position]))
        adjusted[position] = least
    return adjusted


def _check(population: float, rate: float) -> None:
    real_number("population", population, least=1)
    real_number("rate", rate, least=0, most=1)
