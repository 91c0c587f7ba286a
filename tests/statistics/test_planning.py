import math

import pytest
from scipy.stats import beta

from resilient_heads.errors import ArgumentError
from resilient_heads.statistics.intervals import clopper_pearson, difference_of_rates, wilson
from resilient_heads.statistics.planning import bonferroni, margin_of_error, sample_size


def test_sample_size_by_hand() -> None:
    # Equation 4 with t = 1.959964, p = 0.5: 10^6 / (1 + 0.01^2 * 999999 / (3.841459 * 0.25)) = 9512.8.
    assert sample_size(10**6, 0.01, rate=0.5, level=0.95) == 9513
    assert sample_size(math.inf, 0.01, rate=0.5, level=0.95) == 9604
    assert sample_size(10**6, 0.01, rate=0.5, level=0.95, replacement=True) == 9604
    assert sample_size(10, 1e-9, rate=0.5) == 10
    assert sample_size(1000, 0.01, rate=0.0) == 1


@pytest.mark.parametrize("population", [500, 10**6, 10**12])
def test_the_margin_is_the_inverse_of_the_size(population: int) -> None:
    trials = sample_size(population, 0.03, rate=0.2)
    assert margin_of_error(population, trials, rate=0.2) <= 0.03 < margin_of_error(population, trials - 1, rate=0.2)


def test_all_faults_leave_no_margin() -> None:
    assert margin_of_error(100, 100, rate=0.5) == 0
    with pytest.raises(ArgumentError, match="trials must be at most the population, 100, found 101"):
        margin_of_error(100, 101, rate=0.5)
    with pytest.raises(ArgumentError, match="margin must be a number above 0"):
        sample_size(100, 0, rate=0.5)
    with pytest.raises(ArgumentError, match="rate must be"):
        sample_size(100, 0.1, rate=2)


def test_bonferroni_by_hand() -> None:
    assert bonferroni(0.99, 20) == pytest.approx(0.9995)


def test_clopper_pearson_by_the_beta_distribution() -> None:
    for events, trials in [(0, 7), (1, 10), (5, 10), (10, 10), (3, 4000)]:
        found = clopper_pearson(events, trials, level=0.95)
        assert found.low == (pytest.approx(beta.ppf(0.025, events, trials - events + 1)) if events else 0)
        assert found.high == (pytest.approx(beta.ppf(0.975, events + 1, trials - events)) if events < trials else 1)
    with pytest.raises(ArgumentError, match="events must be"):
        clopper_pearson(5, 4)
    assert math.isnan(clopper_pearson(0, 0).value)


def test_newcombe_by_hand() -> None:
    # Newcombe 1998, table II: 56/70 - 48/80 by method 10: 0.2, from 0.0524 to 0.3339 at 95 %.
    found = difference_of_rates(wilson(56 / 70, 70, level=0.95), wilson(48 / 80, 80, level=0.95))
    assert (found.low, found.high) == (pytest.approx(0.0524, abs=1e-4), pytest.approx(0.3339, abs=1e-4))
