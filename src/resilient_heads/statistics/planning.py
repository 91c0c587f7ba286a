"""How many trials a margin of error takes, and what several comparisons cost."""

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
        margin: Half-width of the interval, as a share of 1.
        level: Confidence level.
        rate: Expected rate; 0.5 is the most cautious.
        replacement: Whether a fault may be drawn twice, as this library's campaigns draw; then the population's size
            does not matter.

    Raises:
        ArgumentError: A value that means nothing.

    >>> sample_size(1e9, 0.01, level=0.95)
    9604

    Source: Leveugle et al., *Statistical fault injection: quantified error and confidence*, DATE 2009, equation 4.
    """
    _check(population, rate)
    real_number("margin", margin, above=0)
    z = normal_quantile(level)
    endless = z * z * rate * (1 - rate) / (margin * margin)
    if replacement or math.isinf(population):
        return math.ceil(endless)
    if rate in (0, 1):
        return 1
    return math.ceil(population / (1 + (population - 1) / endless))


def margin_of_error(
    population: float, trials: int, *, level: float = DEFAULT_LEVEL, rate: float = 0.5, replacement: bool = False
) -> float:
    """Return the half-width that a number of trials gives; the inverse of :func:`sample_size`.

    Raises:
        ArgumentError: A value that means nothing, or more trials than possible faults.

    Source: Leveugle et al., DATE 2009, equation 5.
    """
    _check(population, rate)
    real_number("trials", trials, least=1, most=None if replacement else population)
    left = 1.0 if replacement or math.isinf(population) else (population - trials) / max(population - 1, 1)
    return normal_quantile(level) * math.sqrt(rate * (1 - rate) / trials * left)


def bonferroni(level: float, figures: int) -> float:
    """Return the level of each of several intervals that shall hold together with probability ``level``.

    Raises:
        ArgumentError: The level is not between 0 and 1.
    """
    normal_quantile(level)
    return 1 - (1 - level) / max(figures, 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for being several: those below 0.01 are all right together with probability 0.99.

    Raises:
        ArgumentError: A value outside of [0, 1].

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]

    Source: Holm, *A simple sequentially rejective multiple test procedure*, Scandinavian Journal of Statistics 1979.
    """
    for position, value in enumerate(p_values):
        real_number(f"p_values[{position}]", value, least=0, most=1)
    adjusted = [1.0] * len(p_values)
    least = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = least
    return adjusted


def _check(population: float, rate: float) -> None:
    real_number("population", population, least=1)
    real_number("rate", rate, least=0, most=1)
