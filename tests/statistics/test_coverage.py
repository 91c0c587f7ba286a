"""Do 99 % intervals hold the truth in at least 98 % of repeated campaigns? Seeds are fixed."""

import functools
import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from helpers.survey import repeated, table_rate
from resilient_heads.statistics.intervals import (
    Estimate,
    mean_interval,
    ratio_of_rates,
    wilson,
)

Floats = NDArray[np.float64]
LEAST = 0.98


@functools.cache
def wilson_of(events: int, trials: int) -> Estimate:
    return wilson(events / trials, trials)


@functools.cache
def log_factorials(trials: int) -> Floats:
    return np.array([math.lgamma(k + 1) for k in range(trials + 1)])


def binomial(trials: int, rate: float) -> Floats:
    """Return the probability of each count."""
    counts, logs = np.arange(trials + 1), log_factorials(trials)
    odds = counts * math.log(rate) + counts[::-1] * math.log1p(-rate)
    return np.asarray(np.exp(logs[-1] - logs - logs[::-1] + odds))


def wilson_misses(trials: int, rate: float) -> tuple[float, float]:
    """Return the exact probabilities that the interval lies above and below the truth."""
    ends = [wilson_of(events, trials) for events in range(trials + 1)]
    probability = binomial(trials, rate)
    above = sum(p for p, end in zip(probability, ends, strict=True) if rate < end.low)
    below = sum(p for p, end in zip(probability, ends, strict=True) if rate > end.high)
    return float(above), float(below)


@pytest.mark.parametrize("trials", [20, 100, 1000])
def test_wilson_exactly(trials: int) -> None:
    for events in np.linspace(5, trials / 2, 40):
        above, below = wilson_misses(trials, events / trials)
        assert 1 - above - below >= LEAST, events
        assert 1 - above - below <= 0.999, events


@pytest.mark.parametrize("trials", [20, 100, 1000])
def test_wilson_of_rare_events_is_too_high_rather_than_too_low(trials: int) -> None:
    # With one or two expected events the coverage swings around 98.4 %, below one it dips to 89 % just where a single
    # event would give an interval above the truth. A rate is never understated for it.
    rare = [wilson_misses(trials, events / trials) for events in np.linspace(0.02, 5, 120)]
    assert max(below for _, below in rare) < 0.005
    few = [wilson_misses(trials, events / trials) for events in np.linspace(1, 5, 120)]
    assert np.mean([1 - above - below for above, below in few]) >= LEAST
    assert min(1 - above - below for above, below in few) >= 0.96


@pytest.mark.parametrize("rate", [0.004, 0.02, 0.3, 0.98])
def test_wilson_by_simulation(rate: float) -> None:
    events = np.random.default_rng(11).binomial(2000, rate, size=5000)
    assert np.mean([rate in wilson_of(int(k), 2000) for k in events]) >= LEAST


# Trials, weights, fraction of fragile images, rates of a fragile and of a sturdy image.
UNEQUAL = np.array([0.4, 0.25, 0.15, 0.08, 0.05, 0.04, 0.02, 0.01])
CAMPAIGNS: dict[str, tuple[int, Floats, float, Floats, Floats]] = {
    "fragile in all layers": (400, UNEQUAL, 0.15, np.full(8, 0.6), np.full(8, 0.01)),
    "layers differ": (400, UNEQUAL, 0.15, np.linspace(0.3, 0.9, 8), np.linspace(0.005, 0.05, 8)),
    "many equal layers": (500, np.full(20, 0.05), 0.1, np.full(20, 0.5), np.full(20, 0.002)),
    "rare events": (2000, UNEQUAL, 0.05, np.full(8, 0.2), np.full(8, 0.0)),
    "the same in every layer": (500, np.full(20, 0.05), 0.02, np.full(20, 1.0), np.full(20, 0.0)),
    "independent layers": (400, UNEQUAL, 0.0, np.full(8, 0.05), np.full(8, 0.05)),
}
CORRELATED = ["fragile in all layers", "layers differ", "many equal layers", "the same in every layer"]


def run_campaigns(name: str, repetitions: int, interval: Callable[[NDArray[np.bool_], Floats], Estimate]) -> float:
    """Return how often the interval holds the true weighted rate."""
    trials, weights, fragile, high, low = CAMPAIGNS[name]
    truth = float(weights @ (fragile * high + (1 - fragile) * low))
    rng = np.random.default_rng(17)
    held = 0
    for _ in range(repetitions):
        is_fragile = rng.random(trials) < fragile
        chance = np.where(is_fragile, high[:, None], low[:, None])
        held += truth in interval(rng.random(chance.shape) < chance, weights)
    return held / repetitions


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_weighted_rate_in_a_few_campaigns(name: str) -> None:
    assert run_campaigns(name, 60, table_rate) >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("name", CAMPAIGNS)
def test_weighted_rate_by_simulation(name: str) -> None:
    assert run_campaigns(name, repeated(1500), table_rate) >= LEAST


@pytest.mark.parametrize("name", CORRELATED)
def test_the_simulation_catches_an_interval_that_takes_layers_for_independent(name: str) -> None:
    def careless(events: NDArray[np.bool_], weights: Floats) -> Estimate:
        return wilson(float(weights @ events.mean(axis=1)), events.shape[1] / float(np.square(weights).sum()))

    assert run_campaigns(name, repeated(3600), careless) < 0.97


@pytest.mark.slow
@pytest.mark.parametrize("images", [50, 150, 300])
def test_weighted_rate_of_images_with_several_trials_by_simulation(images: int) -> None:
    high, low, fragile = np.full(8, 0.6), np.full(8, 0.01), 0.15
    truth = float(UNEQUAL @ (fragile * high + (1 - fragile) * low))
    rng = np.random.default_rng(19)
    held = careless = 0
    repetitions = repeated(1500)
    for _ in range(repetitions):
        image = rng.integers(0, images, size=1000)
        is_fragile = (rng.random(images) < fragile)[image]
        events = rng.random((8, 1000)) < np.where(is_fragile, high[:, None], low[:, None])
        held += truth in table_rate(events, UNEQUAL, image=image)
        careless += truth in table_rate(events, UNEQUAL)
    assert held / repetitions >= LEAST
    assert careless / repetitions < 0.9


MEANS: dict[str, tuple[float, Callable[[np.random.Generator, int], Floats]]] = {
    "normal": (3.0, lambda rng, n: rng.normal(3.0, 1.0, n)),
    "gamma, skewness 1.4": (1.0, lambda rng, n: rng.gamma(2.0, 0.5, n)),
    "exponential, skewness 2": (1.0, lambda rng, n: rng.exponential(1.0, n)),
}


@pytest.mark.parametrize("name", MEANS)
def test_mean_interval_by_simulation(name: str) -> None:
    truth, draw = MEANS[name]
    rng = np.random.default_rng(41)
    assert np.mean([truth in mean_interval(draw(rng, 200)) for _ in range(4000)]) >= LEAST


# Trials and rates of the two, with expected counts from 200 down to 1.
RATIOS = [
    (400, 0.1, 400, 0.2),
    (1000, 0.2, 5000, 0.01),
    (1000, 0.005, 1000, 0.005),
    (500, 0.02, 500, 0.005),
    (2000, 0.002, 2000, 0.001),
    (1000, 0.003, 1000, 0.01),
    (1000, 0.01, 1000, 0.001),
]


@pytest.mark.slow
@pytest.mark.parametrize(("trials", "rate", "others", "other_rate"), RATIOS)
def test_ratio_of_rates_by_simulation(trials: int, rate: float, others: int, other_rate: float) -> None:
    rng = np.random.default_rng(31)
    top, bottom = rng.binomial(trials, rate, size=10_000), rng.binomial(others, other_rate, size=10_000)
    held = 0
    for k, m in zip(top.tolist(), bottom.tolist(), strict=True):
        found = ratio_of_rates(wilson_of(k, trials), wilson_of(m, others))
        assert (found.high == math.inf) == (m == 0)
        held += rate / other_rate in found
    assert held / 10_000 >= LEAST
