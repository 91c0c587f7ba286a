"""Which of several differences are real: Holm's correction, and how often it names a layer wrongly."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.survey import repeated, survey
from resilient_heads.campaign.analysis.compare import difference_p_value
from resilient_heads.errors import ArgumentError
from resilient_heads.statistics.intervals import difference_of_rates
from resilient_heads.statistics.planning import holm
from resilient_heads.statistics.sample import Sample
from resilient_heads.statistics.weighted import rate_intervals, weighted_rate


def test_holm_by_hand() -> None:
    # Sorted: 4 * 0.005, then 3 * 0.01, then 2 * 0.03, then 0.04 is lifted to the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(ArgumentError, match="must be a number of at least 0 and of at most 1"):
        holm([0.5, 1.5])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_lies_between_the_value_and_bonferroni(values: list[float]) -> None:
    found = holm(values)
    for value, adjusted in zip(values, found, strict=True):
        assert value <= adjusted <= min(1.0, len(values) * value) + 1e-12
    assert all(a <= b for a, b in pairwise(adjusted for _, adjusted in sorted(zip(values, found, strict=True))))


def test_the_p_value_is_where_the_interval_touches_0() -> None:
    rng = np.random.default_rng(3)
    first, second = (rng.random(400) < rate for rate in (0.2, 0.1))
    sample = survey(np.ones(1), 400)
    intervals = [rate_intervals(events, sample) for events in (first, second)]
    assert intervals[0](0.95) == weighted_rate(first, sample, level=0.95)
    p_value = difference_p_value(*intervals)
    assert 1e-6 < p_value < 0.1
    for factor, holds in ((0.99, True), (1.01, False)):
        found = difference_of_rates(*(interval(1 - factor * p_value) for interval in intervals))
        assert (0.0 in found) is holds
    assert difference_p_value(intervals[0], intervals[0]) == 1.0
    nothing = rate_intervals(np.zeros(0, dtype=bool), survey(np.ones(1), 0))
    assert difference_p_value(intervals[0], nothing) == 1.0


def test_a_stratum_in_which_every_trial_is_an_event_widens_the_interval_downwards() -> None:
    stratum = np.repeat([0, 1], [2, 80])
    sample = Sample(
        weight=np.array([0.1, 0.01])[stratum],
        site=np.zeros(82, dtype=np.int64),
        stratum=stratum,
        image=np.arange(82),
        image_draw=np.arange(82),
    )
    found = weighted_rate(stratum == 0, sample)
    assert found.value == pytest.approx(0.2)
    assert found.low < 0.1  # one of two events may as well not have been
    assert found.high > 0.21


@pytest.mark.slow
def test_layers_are_rarely_named_wrongly_by_simulation() -> None:
    """Of twelve layers two differ: those are found, and any other is named in one campaign of ten at most."""
    rng, wrong, right, careless = np.random.default_rng(83), 0, 0, 0
    rates = np.array([[0.02] * 10 + [0.1, 0.1], [0.02] * 10 + [0.01, 0.02]])
    repetitions, sample = repeated(600), survey(np.ones(1), 600)
    for _ in range(repetitions):
        values = []
        for layer in range(12):
            events = [rng.random(600) < rates[model, layer] for model in range(2)]
            values.append(difference_p_value(*(rate_intervals(of_model, sample) for of_model in events)))
        named = np.array(holm(values)) <= 0.1
        wrong += bool(named[:10].any())
        right += int(named[10:].sum())
        careless += bool((np.array(values[:10]) <= 0.1).any())
    assert wrong / repetitions <= 0.1
    assert right / repetitions > 1.9
    assert careless / repetitions > 0.3
