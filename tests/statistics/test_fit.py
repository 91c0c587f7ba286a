import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient_heads.statistics.fit import MEGABIT, fit_rate

PROPERTY = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def test_a_megabit_is_binary() -> None:
    assert MEGABIT == 1_048_576
    assert fit_rate(1_048_576, raw_fit_per_megabit=600) == 600.0
    assert fit_rate(1_048_576) == 1.0


def test_a_classifier_by_hand() -> None:
    # A 2048 x 1000 float32 weight of which one flip in 50 does harm, in a memory of 1000 FIT/Mbit: 62.5 Mbit, 1250 FIT.
    bits = 2048 * 1000 * 32
    assert fit_rate(bits / 50, raw_fit_per_megabit=1000) == pytest.approx(62.5 * 1000 / 50)


def test_nothing_harmful_never_fails() -> None:
    assert fit_rate(0.0, raw_fit_per_megabit=1000) == 0.0
    assert fit_rate(1e9, raw_fit_per_megabit=0.0) == 0.0
    assert math.isnan(fit_rate(math.nan))
    assert fit_rate(math.inf) == math.inf


@PROPERTY
@given(st.floats(0, 1e15), st.floats(0, 1e6))
def test_rates_add_up_over_memories(bits: float, raw: float) -> None:
    whole = fit_rate(bits, raw_fit_per_megabit=raw)
    parts = fit_rate(bits / 4, raw_fit_per_megabit=raw) + fit_rate(bits * 3 / 4, raw_fit_per_megabit=raw)
    assert whole == pytest.approx(parts, rel=1e-9, abs=1e-300)
    assert fit_rate(bits, raw_fit_per_megabit=2 * raw) == pytest.approx(2 * whole, rel=1e-9, abs=1e-300)
