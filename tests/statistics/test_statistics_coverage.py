"""Do stratified, paired and sequential 99 % intervals hold the truth in at least 98 % of campaigns? Seeds are fixed."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from helpers.survey import repeated
from resilient_heads.statistics.intervals import Estimate, clopper_pearson, wilson
from resilient_heads.statistics.paired import paired_difference, paired_ratio
from resilient_heads.statistics.sample import Sample, influence
from resilient_heads.statistics.weighted import weighted_mean, weighted_rate

Floats = NDArray[np.float64]
LEAST = 0.98


def stratified(counts: list[int], fractions: Floats, images: int, rng: np.random.Generator) -> Sample:
    """Return one layer whose trials use images drawn with replacement."""
    stratum = np.repeat(np.arange(len(counts)), counts)
    return Sample(
        weight=(fractions / np.array(counts))[stratum],
        site=np.zeros(len(stratum), dtype=np.int64),
        stratum=stratum,
        image=rng.integers(0, images, len(stratum)),
        image_draw=np.arange(len(stratum)),
    )


# Trials, fractions and rates of the strata, fraction of fragile images and how much more often those fail.
DESIGNS: dict[str, tuple[list[int], list[float], list[float], float, float]] = {
    "as allocated": ([600, 300, 200, 100], [0.05, 0.05, 0.2, 0.7], [0.4, 0.1, 0.01, 0.0], 0.0, 1.0),
    "a rare event in a stratum with few trials": ([800, 50, 50], [0.1, 0.2, 0.7], [0.3, 0.02, 0.005], 0.0, 1.0),
    "many strata of few trials": (
        [3] * 60 + [200] * 4,
        [0.9 / 60] * 60 + [0.025] * 4,
        [0.002] * 60 + [0.3] * 4,
        0.0,
        1.0,
    ),
    "fragile images": ([600, 300, 300], [0.1, 0.2, 0.7], [0.2, 0.05, 0.002], 0.1, 8.0),
    "singletons": ([1] * 20 + [400], [0.01] * 20 + [0.8], [0.3] * 20 + [0.05], 0.0, 1.0),
    "wrong way round": ([30, 500], [0.5, 0.5], [0.2, 0.001], 0.0, 1.0),
    "nearly all": ([400, 100], [0.3, 0.7], [0.97, 0.999], 0.0, 1.0),
}


def rate_coverage(name: str, repetitions: int, interval: Callable[[NDArray[np.bool_], Sample], Estimate]) -> float:
    counts, fractions, rates, fragile, factor = DESIGNS[name]
    weights, base = np.array(fractions), np.array(rates)
    most = np.minimum(base * factor, 1.0)
    truth = float(weights @ (fragile * most + (1 - fragile) * base))
    rng = np.random.default_rng(43)
    held = 0
    for _ in range(repetitions):
        images = 300
        drawn = stratified(counts, weights, images, rng)
        weak = (rng.random(images) < fragile)[drawn.image]
        chance = np.where(weak, most[drawn.stratum], base[drawn.stratum])
        held += truth in interval(rng.random(len(drawn)) < chance, drawn)
    return held / repetitions


@pytest.mark.parametrize("name", DESIGNS)
def test_stratified_rates_in_a_few_campaigns(name: str) -> None:
    assert rate_coverage(name, 60, weighted_rate) >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("name", DESIGNS)
def test_stratified_rates_by_simulation(name: str) -> None:
    assert rate_coverage(name, repeated(1200), weighted_rate) >= LEAST


@pytest.mark.parametrize("name", ["a rare event in a stratum with few trials", "fragile images"])
def test_the_simulation_catches_an_interval_that_counts_trials_alone(name: str) -> None:
    def careless(occurred: NDArray[np.bool_], drawn: Sample) -> Estimate:
        found = influence(drawn, occurred.astype(float))
        effective = found.value * (1 - found.value) / max(found.variance(), 1e-300)
        return wilson(min(found.value, 1.0), effective)

    assert rate_coverage(name, repeated(3000), careless) < 0.97


@pytest.mark.slow
@pytest.mark.parametrize("events", [0.1, 0.5, 1, 2, 4])
def test_rare_events_on_images_of_several_trials_by_simulation(events: float) -> None:
    rng, repetitions = np.random.default_rng(47), repeated(1500)
    held = 0
    for _ in range(repetitions):
        image = rng.integers(0, 500, 2000)
        weak = (rng.random(500) < 0.5)[image]
        occurred = rng.random(2000) < np.where(weak, 1.8, 0.2) * events / 2000
        zeros = np.zeros(2000, dtype=np.int64)
        drawn = Sample(
            weight=np.full(2000, 1 / 2000), site=zeros, stratum=zeros, image=image, image_draw=np.arange(2000)
        )
        held += events / 2000 in weighted_rate(occurred, drawn)
    assert held / repetitions >= LEAST


@pytest.mark.parametrize("trials", [20, 100, 1000])
def test_clopper_pearson_exactly(trials: int) -> None:
    from scipy.stats import binom

    ends = [clopper_pearson(occurred, trials) for occurred in range(trials + 1)]
    for rate in np.linspace(0.01, 30, 60) / 60:
        inside = np.array([rate in end for end in ends])
        assert binom.pmf(np.arange(trials + 1), trials, rate)[inside].sum() >= 0.99


LOSSES: dict[str, tuple[float, Callable[[np.random.Generator, int], Floats]]] = {
    "gamma, skewness 1.4": (1.0, lambda rng, n: rng.gamma(2.0, 0.5, n)),
    "exponential, skewness 2": (1.0, lambda rng, n: rng.exponential(1.0, n)),
    "log-normal, skewness 6": (float(np.exp(0.5)), lambda rng, n: rng.lognormal(0.0, 1.0, n)),
    "mostly zero": (0.1, lambda rng, n: rng.exponential(1.0, n) * (rng.random(n) < 0.1)),
}


def loss_sample(counts: list[int], fractions: Floats, images: int, rng: np.random.Generator) -> tuple[Sample, Floats]:
    drawn = replace(stratified(counts, fractions, images, rng), image=rng.permutation(np.arange(sum(counts)) % images))
    return drawn, rng.gamma(4.0, 0.25, images)[drawn.image]


def loss_coverage(name: str, images: int, repetitions: int) -> float:
    truth, draw = LOSSES[name]
    rng, held = np.random.default_rng(53), 0
    for _ in range(repetitions):
        drawn, fragility = loss_sample([2 * images, images], np.array([0.3, 0.7]), images, rng)
        held += truth in weighted_mean(draw(rng, len(drawn)) * fragility, drawn)
    return held / repetitions


@pytest.mark.parametrize("name", LOSSES)
def test_mean_losses_in_a_few_campaigns(name: str) -> None:
    assert loss_coverage(name, 100, 60) >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("images", [100, 400])
@pytest.mark.parametrize("name", LOSSES)
def test_mean_losses_by_simulation(name: str, images: int) -> None:
    assert loss_coverage(name, images, repeated(1200)) >= LEAST


@pytest.mark.slow
@pytest.mark.parametrize("figure", ["ratio", "difference"])
def test_paired_figures_by_simulation(figure: str) -> None:
    rng, repetitions = np.random.default_rng(59), repeated(1200)
    held, widths, careless = 0, [], []
    for _ in range(repetitions):
        fragility = rng.gamma(1.0, 1.0, 200)
        values, errors = [], []
        for mean in (1.0, 0.5):
            drawn = stratified([400, 300], np.array([0.3, 0.7]), 200, rng)
            losses = mean * rng.gamma(2.0, 0.5, len(drawn)) * fragility[drawn.image]
            found = influence(drawn, losses)
            values.append(found.value)
            errors.append(np.bincount(drawn.image, weights=found.parts, minlength=200))
        interval = paired_ratio if figure == "ratio" else paired_difference
        estimate = interval(*values, *errors)
        held += (2.0 if figure == "ratio" else 0.5) in estimate
        widths.append(estimate.high - estimate.low)
        shuffled = interval(*values, errors[0], rng.permutation(errors[1]))
        careless.append(shuffled.high - shuffled.low)
    assert held / repetitions >= LEAST
    assert np.mean(widths) < 0.9 * np.mean(careless)  # pairing pays


def sequential_coverage(rate: float, half_width: float, step: int, repetitions: int) -> tuple[float, float]:
    """Stop at the first look at which the interval is narrow enough; return coverage and mean trials."""
    rng, held, spent = np.random.default_rng(61), 0, []
    fractions, counts = np.array([0.1, 0.9]), np.array([step // 2, step // 2])
    rates = np.array([rate * 8, rate * 2 / 9])
    for _ in range(repetitions):
        occurred: list[NDArray[np.bool_]] = []
        for look in range(1, 200):
            occurred.append(rng.random(step) < np.repeat(rates, counts))
            stratum = np.tile(np.repeat([0, 1], counts), look)
            number = np.arange(len(stratum))
            drawn = Sample(
                weight=(fractions / (counts * look))[stratum],
                site=np.zeros_like(stratum),
                stratum=stratum,
                image=number,
                image_draw=number,
            )
            estimate = weighted_rate(np.concatenate(occurred), drawn)
            if (estimate.high - estimate.low) / 2 <= half_width:
                break
        held += rate in estimate
        spent.append(look * step)
    return held / repetitions, float(np.mean(spent))


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "half_width"), [(0.05, 0.02), (0.01, 0.008), (0.002, 0.004)])
def test_stopping_at_a_half_width_by_simulation(rate: float, half_width: float) -> None:
    coverage, spent = sequential_coverage(rate, half_width, 64, repeated(500))
    assert coverage >= LEAST
    assert spent > 2 * 64


def test_stopping_at_a_half_width_in_a_few_campaigns() -> None:
    coverage, spent = sequential_coverage(0.05, 0.02, 64, 30)
    assert coverage >= 0.9
    assert spent > 2 * 64
