import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from helpers.survey import survey, table_rate
from resilient_heads.errors import ArgumentError
from resilient_heads.statistics.intervals import (
    MIN_IMAGES,
    Estimate,
    clopper_pearson,
    mean_interval,
    normal_quantile,
    ratio,
    ratio_of_rates,
    wilson,
)
from resilient_heads.statistics.weighted import bootstrap_counts, bootstrap_t, weighted_mean

PROPERTY = settings(max_examples=40, deadline=None, derandomize=True, database=None)
INF, NAN = math.inf, math.nan
Floats = NDArray[np.float64]

# From printed tables of the normal distribution.
QUANTILES = {0.5: 0.674490, 0.8: 1.281552, 0.9: 1.644854, 0.95: 1.959964, 0.99: 2.575829, 0.999: 3.290527}


def near(value: float) -> float:
    return pytest.approx(value, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("level", QUANTILES)
def test_normal_quantiles(level: float) -> None:
    assert normal_quantile(level) == pytest.approx(QUANTILES[level], abs=5e-7)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, 99, NAN])
def test_a_level_that_is_none(level: float) -> None:
    for attempt in (lambda: normal_quantile(level), lambda: wilson(0.5, 10, level=level)):
        with pytest.raises(ArgumentError, match="level must be a number above 0 and below 1, found"):
            attempt()


# z = 1.959964, z^2 = 3.841459. Centre (p + z^2/2n) / (1 + z^2/n), half width z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n).
# 0/100: high = z^2 / (100 + z^2) = 3.841459 / 103.841459.
# 50/100: centre 0.5, half width 1.959964 sqrt(0.0025 + 0.0000960365) / 1.03841459 = 0.0961685.
WILSON = [
    (0, 100, 0.0, 0.0369935),
    (100, 100, 0.9630065, 1.0),
    (50, 100, 0.4038315, 0.5961685),
    (1, 10, 0.0178762, 0.4041500),
    (5, 10, 0.2365931, 0.7634069),
    (1, 1, 0.2065493, 1.0),
]


@pytest.mark.parametrize(("events", "trials", "low", "high"), WILSON)
def test_wilson_by_hand(events: int, trials: int, low: float, high: float) -> None:
    found = wilson(events / trials, trials, level=0.95)
    assert (found.value, found.level, found.method) == (events / trials, 0.95, "wilson")
    assert found.low == pytest.approx(low, abs=1e-7)
    assert found.high == pytest.approx(high, abs=1e-7)


def test_wilson_has_a_level_of_99_percent_by_default() -> None:
    assert wilson(0.0, 100).high == pytest.approx(6.634897 / 106.634897, abs=1e-7)
    assert wilson(0.0, 100).level == 0.99


@PROPERTY
@given(st.integers(1, 5000), st.floats(0, 1), st.sampled_from([0.5, 0.9, 0.95, 0.99, 0.999]))
def test_wilson_solves_the_quadratic(trials: int, fraction: float, level: float) -> None:
    events = round(fraction * trials)
    p, z = events / trials, normal_quantile(level)
    # (p - x)^2 = z^2 x (1 - x) / n, solved for x by numpy's companion matrix.
    roots = np.roots([1 + z * z / trials, -(2 * p + z * z / trials), p * p])
    found = wilson(p, trials, level=level)
    assert found.low == pytest.approx(float(roots.real.min()), abs=1e-7)
    assert found.high == pytest.approx(float(roots.real.max()), abs=1e-7)
    assert 0 <= found.low <= p <= found.high <= 1


@PROPERTY
@given(st.floats(0, 1), st.floats(0.01, 1e7))
def test_wilson_is_symmetric_and_narrows(rate: float, trials: float) -> None:
    found, mirrored, more = wilson(rate, trials), wilson(1 - rate, trials), wilson(rate, trials * 2)
    assert found.low == pytest.approx(1 - mirrored.high, abs=1e-9)
    assert found.high == pytest.approx(1 - mirrored.low, abs=1e-9)
    assert more.high - more.low <= found.high - found.low + 1e-12
    assert wilson(rate, trials, level=0.95).high <= found.high + 1e-12


def test_wilson_is_exact_at_the_borders() -> None:
    for trials in (1, 7, 100, 4096, 10**6):
        assert wilson(0.0, trials).low == 0.0
        assert 0 < wilson(0.0, trials).high < 1
        assert wilson(1.0, trials).high == 1.0
        assert 0 < wilson(1.0, trials).low < 1


def test_no_trials_say_nothing() -> None:
    for found in (wilson(0.5, 0), clopper_pearson(0, 0)):
        assert math.isnan(found.value)
        assert (found.low, found.high) == (0.0, 1.0)
        assert str(found) == "unknown (no trials)"


@pytest.mark.parametrize(("rate", "trials"), [(0.5, -1), (0.5, NAN), (5, 10), (-0.1, 10), (NAN, 10), ("0.5", 10)])
def test_rates_and_trials_out_of_range_are_refused(rate: float, trials: float) -> None:
    with pytest.raises(ArgumentError, match="must be a number of at least 0"):
        wilson(rate, trials)


def test_an_estimate_contains_its_ends() -> None:
    found = Estimate(0.5, 0.25, 0.75, 0.99, "by hand")
    assert 0.25 in found
    assert 0.75 in found
    assert 0.2499 not in found
    assert 0.7501 not in found
    assert NAN not in found
    assert INF in Estimate(1.0, 0.5, INF, 0.99, "by hand")


def test_an_estimate_is_shown_with_its_interval() -> None:
    assert str(Estimate(0.123456, 0.1, 0.2, 0.99, "by hand")) == "0.123 [0.1, 0.2]"
    assert str(Estimate(NAN, 0.0, INF, 0.99, "no trials")) == "unknown (no trials)"
    assert str(Estimate(0.5, NAN, NAN, 0.99, "one image")) == "0.5 (no interval: one image)"
    assert str(Estimate(0.0, 0.0, NAN, 0.99, "by hand")) == "0 [0, ?]"
    assert repr(Estimate(0.5, 0.4, 0.6, 0.99, "by hand")) == "<Estimate 0.5 [0.4, 0.6], level 0.99, by hand>"


def rates(*fractions: float, trials: int = 1000, seed: int = 0) -> NDArray[np.bool_]:
    rng = np.random.default_rng(seed)
    return np.array([rng.permutation(trials) < round(fraction * trials) for fraction in fractions])


@pytest.mark.parametrize("fraction", [0.0, 0.002, 0.05, 0.5, 0.97, 1.0])
def test_one_layer_is_clopper_pearson(fraction: float) -> None:
    found, expected = table_rate(rates(fraction), np.ones(1)), clopper_pearson(round(fraction * 1000), 1000)
    assert found.value == near(fraction)
    assert (found.low, found.high) == (pytest.approx(expected.low, rel=1e-9), pytest.approx(expected.high, rel=1e-9))
    assert (found.level, found.method) == (0.99, "Clopper-Pearson, effective size")


def test_layers_of_weight_zero_do_not_count() -> None:
    events = rates(0.05, 0.9, 0.0)
    found = table_rate(events, np.array([1.0, 0.0, 0.0]))
    alone = table_rate(events[:1], np.ones(1))
    assert found.value == near(alone.value)
    assert (found.low, found.high) == (pytest.approx(alone.low, rel=0.01), pytest.approx(alone.high, rel=0.01))


def test_weighted_rate_is_the_weighted_mean() -> None:
    found = table_rate(rates(0.1, 0.4, 0.02), np.array([0.5, 0.2, 0.3]), level=0.95)
    assert found.value == near(0.5 * 0.1 + 0.2 * 0.4 + 0.3 * 0.02)
    assert found.level == 0.95
    assert found.low < found.value < found.high


def test_no_events_leave_an_upper_bound() -> None:
    weights = np.array([0.7, 0.2, 0.1])
    found = table_rate(np.zeros((3, 400), dtype=bool), weights)
    assert found.value == found.low == 0.0
    # 1 - 0.005^(1/n) at 400 / 0.7 trials: all of the harm could sit in the heaviest layer.
    assert found.high == pytest.approx(1 - 0.005 ** (0.7 / 400), abs=1e-9)


def test_more_layers_never_claim_more_than_independent_trials_would() -> None:
    # Twenty layers that repeat one another know no more than one.
    one = rates(0.05)
    repeated = table_rate(np.repeat(one, 20, axis=0), np.full(20, 0.05))
    alone = table_rate(one, np.ones(1))
    assert repeated.value == near(alone.value)
    assert repeated.low == pytest.approx(alone.low, rel=1e-3)
    assert repeated.high == pytest.approx(alone.high, rel=1e-3)
    # Those that are unrelated know more.
    apart = table_rate(rates(*[0.05] * 20), np.full(20, 0.05))
    assert apart.high - apart.low < 0.35 * (alone.high - alone.low)


def test_trials_that_repeat_their_images_know_no_more() -> None:
    one, images = rates(0.05, trials=200), np.arange(200)
    repeated = table_rate(np.tile(one, 10), np.ones(1), image=np.tile(images, 10))
    alone = table_rate(one, np.ones(1), image=images)
    assert repeated.value == near(alone.value)
    assert (repeated.low, repeated.high) == (pytest.approx(alone.low, rel=0.01), pytest.approx(alone.high, rel=0.01))
    careless = table_rate(np.tile(one, 10), np.ones(1))
    assert careless.high - careless.low < 0.5 * (alone.high - alone.low)


def test_every_trial_on_an_image_of_its_own_is_the_same_as_no_images() -> None:
    events, weights = rates(0.05, 0.3), np.array([0.6, 0.4])
    order = np.random.default_rng(3).permutation(1000)
    with_images, without = table_rate(events, weights, image=order), table_rate(events, weights)
    assert (with_images.low, with_images.high) == (near(without.low), near(without.high))


def test_images_that_cancel_do_not_narrow_the_interval() -> None:
    # Every image has one event in two trials: none vary, but the trials do, alike in both layers.
    events = np.array([[True, False] * 100] * 2)
    found = table_rate(events, np.array([0.5, 0.5]), image=np.repeat(np.arange(100), 2))
    expected = clopper_pearson(100, 200)
    assert (found.low, found.high) == (pytest.approx(expected.low, rel=0.01), pytest.approx(expected.high, rel=0.01))


def test_the_numbers_of_the_images_do_not_matter() -> None:
    events, weights = rates(0.1, 0.3, trials=300), np.array([0.6, 0.4])
    image = np.random.default_rng(3).integers(0, 40, 300)
    first, second = table_rate(events, weights, image=image), table_rate(events, weights, image=1000 - 7 * image)
    assert (first.low, first.high) == (near(second.low), near(second.high))


def test_no_trials_at_all() -> None:
    found = table_rate(np.zeros((2, 0), dtype=bool), np.array([0.5, 0.5]))
    assert math.isnan(found.value)
    assert (found.low, found.high) == (0.0, 1.0)


def test_one_trial() -> None:
    found = table_rate(np.array([[True], [False]]), np.array([0.5, 0.5]))
    assert found.value == 0.5
    assert 0 <= found.low < 0.5 < found.high <= 1


@PROPERTY
@given(
    st.lists(st.integers(1, 100), min_size=1, max_size=6),
    st.integers(2, 60),
    st.integers(0, 2**32),
    st.floats(0, 0.95),
)
def test_weighted_rate_is_always_an_interval(sizes: list[int], trials: int, seed: int, fraction: float) -> None:
    weights = np.array(sizes) / sum(sizes)
    events = np.random.default_rng(seed).random((len(sizes), trials)) < fraction
    events[:, 0] = False
    found = table_rate(events, weights)
    assert 0 <= found.low <= found.value + 1e-15
    assert found.value <= found.high <= 1
    assert found.high > 0
    order = np.random.default_rng(seed).permutation(trials)
    shuffled = table_rate(events[:, order], weights)
    assert shuffled.high == pytest.approx(found.high, rel=1e-9)


def test_mean_interval_by_hand() -> None:
    # Mean 5.5, variance 82.5 / 9, standard error sqrt(82.5 / 90) = 0.957427; 2.575829 of them are 2.466168.
    found = mean_interval(np.arange(1.0, 11.0))
    assert found.value == 5.5
    assert found.low == pytest.approx(5.5 - 2.466168, abs=1e-5)
    assert found.high == pytest.approx(5.5 + 2.466168, abs=1e-5)
    assert (found.level, found.method) == (0.99, "normal")
    narrow = mean_interval(np.arange(1.0, 11.0), level=0.95)
    assert narrow.high - narrow.value == pytest.approx(1.959964 * 0.957427, abs=1e-5)


def test_bootstrap_counts_are_multinomial() -> None:
    drawn = bootstrap_counts(50)
    assert drawn.shape == (2000, 50)
    assert (drawn.sum(axis=1) == 50).all()
    assert (drawn >= 0).all()
    # Binomial(50, 1/50): mean 1, variance 0.98, and an image is left out with probability 0.98^50.
    np.testing.assert_allclose(drawn.mean(axis=0), 1, atol=5 * math.sqrt(0.98 / 2000))
    assert drawn.var() == pytest.approx(0.98, rel=0.02)
    assert (drawn == 0).mean() == pytest.approx(0.98**50, rel=0.02)
    with pytest.raises(ValueError, match="read-only"):
        drawn[0, 0] = 5


def mover(numerator: Estimate, denominator: Estimate) -> tuple[float, float]:
    """The limits as printed by Donner and Zou, not rearranged."""
    p, l1, u1 = numerator.value, numerator.low, numerator.high
    q, l2, u2 = denominator.value, denominator.low, denominator.high
    low = (p * q - math.sqrt((p * q) ** 2 - l1 * u2 * (2 * p - l1) * (2 * q - u2))) / (u2 * (2 * q - u2))
    high = (p * q + math.sqrt(max(0.0, (p * q) ** 2 - u1 * l2 * (2 * p - u1) * (2 * q - l2)))) / (l2 * (2 * q - l2))
    return low, high


@PROPERTY
@given(st.integers(1, 400), st.integers(1, 400), st.integers(400, 5000), st.integers(400, 5000))
def test_ratios_agree_with_the_printed_formula(events: int, others: int, trials: int, more: int) -> None:
    top, bottom = wilson(events / trials, trials), wilson(others / more, more)
    if abs(2 * bottom.value - bottom.high) < 1e-6:
        return
    low, high = mover(top, bottom)
    found = ratio_of_rates(top, bottom)
    assert found.value == near(top.value / bottom.value)
    assert found.low == pytest.approx(low, rel=1e-6)
    assert found.high == pytest.approx(high, rel=1e-6)
    assert found.low < found.value < found.high
    assert (found.level, found.method) == (0.99, "MOVER")


def test_a_ratio_and_its_inverse_have_inverse_ends() -> None:
    top, bottom = wilson(0.1, 500), wilson(0.04, 900)
    found, inverse = ratio_of_rates(top, bottom), ratio_of_rates(bottom, top)
    assert found.low * inverse.high == pytest.approx(1, rel=1e-12)
    assert found.high * inverse.low == pytest.approx(1, rel=1e-12)


def test_a_ratio_to_zero_is_bounded_below_only() -> None:
    found = ratio_of_rates(wilson(0.05, 1000), wilson(0.0, 1000))
    assert found.value == found.high == INF
    # The limit of the printed formula for q = 0: sqrt(l1 (2p - l1)) / u2.
    l1, u2 = wilson(0.05, 1000).low, wilson(0.0, 1000).high
    assert found.low == near(math.sqrt(l1 * (0.1 - l1)) / u2)
    assert 1 < found.low < 0.05 / u2


def test_a_ratio_from_zero_is_bounded_above_only() -> None:
    found = ratio_of_rates(wilson(0.0, 1000), wilson(0.05, 1000))
    assert found.value == found.low == 0.0
    assert 0 < found.high < 1


def test_a_denominator_that_is_tiny_but_not_zero() -> None:
    found = ratio_of_rates(wilson(1e-4, 10**6), wilson(1e-9, 10**10))
    assert found.value == near(1e5)
    assert found.value < found.high < 1e6


def test_zero_over_zero_says_nothing() -> None:
    found = ratio_of_rates(wilson(0.0, 1000), wilson(0.0, 1000))
    assert math.isnan(found.value)
    assert (found.low, found.high) == (0.0, INF)
    for pair in ((wilson(0.1, 0), wilson(0.1, 10)), (wilson(0.1, 10), wilson(0.1, 0))):
        found = ratio_of_rates(*pair)
        assert math.isnan(found.value)
        assert (found.low, found.high) == (0.0, INF)


@PROPERTY
@given(st.integers(0, 50), st.integers(0, 50), st.integers(50, 5000), st.integers(50, 5000))
def test_a_ratio_is_always_an_interval(events: int, others: int, trials: int, more: int) -> None:
    found = ratio_of_rates(wilson(events / trials, trials), wilson(others / more, more))
    assert 0 <= found.low < INF
    assert found.low <= found.high
    assert (found.high == INF) == (others == 0)
    assert math.isnan(found.value) or found.value in found
    assert math.isnan(found.value) == (events == others == 0)


@pytest.mark.parametrize(
    ("numerator", "denominator", "expected"),
    [(6.0, 3.0, 2.0), (0.0, 3.0, 0.0), (1.0, 0.0, INF), (INF, 0.0, INF), (INF, 2.0, INF), (1.0, INF, 0.0)],
)
def test_ratio(numerator: float, denominator: float, expected: float) -> None:
    assert ratio(numerator, denominator) == expected


@pytest.mark.parametrize(("numerator", "denominator"), [(0.0, 0.0), (NAN, 0.0), (NAN, 1.0), (1.0, NAN)])
def test_a_ratio_that_does_not_exist(numerator: float, denominator: float) -> None:
    assert math.isnan(ratio(numerator, denominator))


@pytest.mark.parametrize("images", [1, 2, MIN_IMAGES - 1])
def test_too_few_images_say_nothing_of_others(images: int) -> None:
    x = np.arange(float(images))
    for found in (mean_interval(x), weighted_mean(x, survey(np.ones(1), images))):
        assert found.value == near(x.mean())
        assert math.isnan(found.low)
        assert math.isnan(found.high)
        assert found.method == "fewer than 10 images"


def test_a_bootstrap_of_a_mean_by_theory() -> None:
    x = np.random.default_rng(2).normal(10, 2, 400)
    found = weighted_mean(x, survey(np.ones(1), 400))
    assert found.value == near(x.mean())
    # A quarter of one percent beyond each end of a t distribution, which 400 values make nearly normal.
    spread = 2.807 * x.std(ddof=1) / math.sqrt(400)
    assert found.low == pytest.approx(x.mean() - spread, abs=0.2 * spread)
    assert found.high == pytest.approx(x.mean() + spread, abs=0.2 * spread)


def test_a_bootstrap_resamples_images_not_trials() -> None:
    images = np.random.default_rng(1).normal(size=30)
    repeated = weighted_mean(np.repeat(images, 100), survey(np.ones(1), 3000, np.repeat(np.arange(30), 100)))
    alone = weighted_mean(images, survey(np.ones(1), 30))
    assert repeated.high == pytest.approx(alone.high, rel=0.02)
    assert repeated.low == pytest.approx(alone.low, rel=0.02)


def test_an_infinite_loss_reaches_the_upper_end() -> None:
    x = np.ones(40)
    x[3] = INF
    found = weighted_mean(x, survey(np.ones(1), 40))
    assert (found.value, found.high) == (INF, INF)
    assert found.low == pytest.approx(1.0, abs=0.1)


def test_nan_losses_are_left_out_of_their_layer() -> None:
    x = np.array([1.0, NAN, 3.0, 10.0, 20.0, 30.0] * 5).reshape(5, 2, 3).transpose(1, 0, 2).ravel()
    found = weighted_mean(x, survey(np.array([0.25, 0.75]), 15))
    assert found.value == near(0.25 * 2 + 0.75 * 20)


def test_nothing_varied_has_no_upper_end() -> None:
    found = weighted_mean(np.zeros(50), survey(np.ones(1), 50))
    assert (found.value, found.low) == (0.0, 0.0)
    assert math.isnan(found.high)
    assert bootstrap_t(np.zeros(50)) == (0.0, 0.0)
