import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient_heads.errors import ArgumentError
from resilient_heads.statistics.fit import MEGABIT, fit_rate

PROPERTY = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def test_a_megabit_is_binary() -> None:
    assert MEGABIT == 1_048_576
    assert fit_rate(1_048_576, raw_fit_per_megabit=600) == 600.0
    with pytest.raises(TypeError, match="raw_fit_per_megabit"):
        fit_rate(1_048_576)  # type: ignore[call-arg]


def test_a_classifier_by_hand() -> None:
    # A 2048 x 1000 float32 weight of which one flip in 50 does harm, in a memory of 1000 FIT/Mbit: 62.5 Mbit, 1250 FIT.
    bits = 2048 * 1000 * 32
    assert fit_rate(bits / 50, raw_fit_per_megabit=1000) == pytest.approx(62.5 * 1000 / 50)


def test_nothing_harmful_never_fails() -> None:
    assert fit_rate(0.0, raw_fit_per_megabit=1000) == 0.0
    assert fit_rate(1e9, raw_fit_per_megabit=0.0) == 0.0
    assert fit_rate(math.inf, raw_fit_per_megabit=1) == math.inf


def test_a_memory_that_is_exposed_half_of_the_time_fails_half_as_often() -> None:
    assert fit_rate(2**20, raw_fit_per_megabit=600, exposed_fraction=0.5) == 300.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"harmful_bits": math.nan}, "harmful_bits must be a number of at least 0, found nan"),
        ({"harmful_bits": -1}, "harmful_bits must be a number of at least 0, found -1"),
        ({"raw_fit_per_megabit": -1}, "raw_fit_per_megabit must be a number of at least 0"),
        ({"raw_fit_per_megabit": None}, "raw_fit_per_megabit must be a number .* found None"),
        ({"raw_fit_per_megabit": math.inf}, "raw_fit_per_megabit must be a number .* below inf, found inf"),
        ({"exposed_fraction": 1.5}, "exposed_fraction must be a number of at least 0 and of at most 1, found 1.5"),
    ],
)
def test_wrong_numbers_are_refused(arguments: dict[str, float], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        fit_rate(**{"harmful_bits": 1.0, "raw_fit_per_megabit": 1.0} | arguments)


@PROPERTY
@given(st.floats(0, 1e15), st.floats(0, 1e6))
def test_rates_add_up_over_memories(bits: float, raw: float) -> None:
    whole = fit_rate(bits, raw_fit_per_megabit=raw)
    parts = fit_rate(bits / 4, raw_fit_per_megabit=raw) + fit_rate(bits * 3 / 4, raw_fit_per_megabit=raw)
    assert whole == pytest.approx(parts, rel=1e-9, abs=1e-300)
    assert fit_rate(bits, raw_fit_per_megabit=2 * raw) == pytest.approx(2 * whole, rel=1e-9, abs=1e-300)
