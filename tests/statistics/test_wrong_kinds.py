"""Statistics functions take numbers of every library and refuse everything else in plain words."""

import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch

from resilient_heads.errors import ArgumentError
from resilient_heads.statistics import (
    Sample,
    bonferroni,
    clopper_pearson,
    cross_entropy,
    delta_loss,
    difference_of_rates,
    holm,
    margin_of_error,
    mean_interval,
    ratio_of_rates,
    sample_size,
    top2diff,
    weighted_mean,
    weighted_rate,
    wilson,
)

COLUMNS: dict[str, Any] = {
    "weight": np.full(20, 1 / 20),
    "site": np.zeros(20, dtype=int),
    "stratum": np.zeros(20, dtype=int),
    "image": np.arange(20),
    "image_draw": np.arange(20),
}
SAMPLE = Sample(**COLUMNS)
RATE, AT_95 = wilson(0.1, 100), wilson(0.1, 100, level=0.95)
LOGITS, TARGET = torch.zeros(2, 3), torch.tensor([0, 2])

REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "levels that differ": (
        lambda: difference_of_rates(RATE, AT_95),
        "first and second must have the same level, found 0.99",
    ),
    "levels of a ratio": (lambda: ratio_of_rates(RATE, AT_95), "numerator and denominator must have the same level"),
    "a rate without interval": (lambda: difference_of_rates(0.1, RATE), "first must be an Estimate, such as clopper"),
    "no denominator": (lambda: ratio_of_rates(RATE, None), "denominator must be an Estimate, .* found None"),
    "no values": (lambda: mean_interval([]), "values must be a vector of at least one number"),
    "a table of values": (lambda: mean_interval(np.ones((3, 3))), "values must be a vector"),
    "words": (lambda: mean_interval(["a", "b"]), "values must be a vector"),
    "one number": (lambda: mean_interval(3.0), "values must be a vector"),
    "no figures": (lambda: bonferroni(0.99, 0), "figures must be a whole number of at least 1, found 0"),
    "half a figure": (lambda: bonferroni(0.99, 2.5), "figures must be a whole number"),
    "one p-value": (lambda: holm(0.01), "p_values must be a sequence of numbers"),
    "a p-value that is NaN": (lambda: holm([0.1, math.nan]), r"p_values\[1\] must be a number"),
    "events as a float": (lambda: clopper_pearson(2.0, 10), "events must be a whole number from 0 to 10, found 2.0"),
    "negative events": (lambda: clopper_pearson(-1, 10), "events must be a whole number from 0 to 10, found -1"),
    "a rate of words": (lambda: sample_size(1e6, 0.01, rate="pilot"), 'rate must be a number .* found "pilot"'),
    "a rate that is NaN": (lambda: sample_size(1e6, 0.01, rate=math.nan), "rate must be a number"),
    "a pilot without trials": (lambda: sample_size(1e6, math.nan, rate=clopper_pearson(0, 0)), "margin must be"),
    "too many trials": (
        lambda: margin_of_error(10, 11, rate=0.5),
        "trials must be at most the population, 10, found 11",
    ),
    "half a trial": (lambda: margin_of_error(10, 2.5, rate=0.5), "trials must be a whole number"),
    "a short column": (
        lambda: Sample(**COLUMNS | {"image": np.arange(3)}),
        r"image must be a NumPy array of shape \(N,\)",
    ),
    "a list": (lambda: Sample(**COLUMNS | {"site": [0] * 20}), "site must be a NumPy array .* found list"),
    "a negative weight": (
        lambda: Sample(**COLUMNS | {"weight": np.full(20, -1.0)}),
        "weight must hold numbers of at least 0",
    ),
    "a weight that is NaN": (lambda: Sample(**COLUMNS | {"weight": np.full(20, np.nan)}), "negative number or NaN"),
    "events that are numbers": (lambda: weighted_rate(np.zeros(20), SAMPLE), "events must be booleans"),
    "too few events": (
        lambda: weighted_rate(np.zeros(3, dtype=bool), SAMPLE),
        r"events must be a NumPy array of shape \(20,\)",
    ),
    "values in a list": (lambda: weighted_mean([0.0] * 20, SAMPLE), r"values must be a NumPy array .* found list"),
    "no sample": (lambda: weighted_mean(np.zeros(20), None), "sample must be a Sample"),
    "a level of 99": (
        lambda: weighted_mean(np.zeros(20), SAMPLE, level=99),
        "level must be a number above 0 and below 1",
    ),
    "logits of one image": (
        lambda: top2diff(torch.zeros(3)),
        r"logits must be a floating tensor of shape .* found .* \(3,\)",
    ),
    "one class": (lambda: top2diff(torch.zeros(2, 1)), "logits must have at least 2 classes; found 1"),
    "an array": (lambda: top2diff(np.zeros((2, 3))), "logits must be a floating tensor .* found ndarray"),
    "a class too many": (
        lambda: cross_entropy(LOGITS, torch.tensor([0, 3])),
        "target must hold classes from 0 to 2; found 0 to 3",
    ),
    "a negative class": (lambda: cross_entropy(LOGITS, torch.tensor([-1, 2])), "found -1 to 2"),
    "float targets": (lambda: cross_entropy(LOGITS, torch.zeros(2)), r"target must be an int64 tensor of shape \(2,\)"),
    "too few targets": (
        lambda: delta_loss(LOGITS, LOGITS, TARGET[:1]),
        r"target must be an int64 tensor of shape \(2,\)",
    ),
    "other classes": (
        lambda: delta_loss(LOGITS, torch.zeros(2, 4), TARGET),
        "golden and faulty must have the same shape",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_kinds_are_refused(kind: str) -> None:
    call, words = REFUSED[kind]
    with pytest.raises(ArgumentError, match=words):
        call()


def test_numbers_of_numpy_are_numbers() -> None:
    assert wilson(np.float32(0.5), np.int64(10)).value == 0.5
    assert clopper_pearson(np.int64(1), np.int32(10)) == clopper_pearson(1, 10)
    assert sample_size(np.float64(1e6), np.float32(0.25), rate=np.float64(0.5)) == sample_size(1e6, 0.25, rate=0.5)
    assert holm(np.array([0.01, 0.04, 0.03])) == [0.03, 0.06, 0.06]
    assert mean_interval([1, 2, 3]).value == 2
    assert mean_interval(range(20)) == mean_interval(np.arange(20.0))
    assert bonferroni(0.99, np.int64(2)) == bonferroni(0.99, 2)


def test_a_pilot_plans_for_the_end_of_its_interval_that_needs_most_trials() -> None:
    rare, frequent, even = clopper_pearson(12, 2000), clopper_pearson(1990, 2000), clopper_pearson(48, 100)
    assert sample_size(math.inf, 0.001, rate=rare) == sample_size(math.inf, 0.001, rate=rare.high) == 78896
    assert sample_size(math.inf, 0.001, rate=frequent) == sample_size(math.inf, 0.001, rate=frequent.low)
    assert sample_size(math.inf, 0.001, rate=even) == sample_size(math.inf, 0.001, rate=0.5) == 1_658_725
    assert sample_size(math.inf, 0.001, rate=clopper_pearson(0, 0)) == 1_658_725  # nothing is known
    assert margin_of_error(math.inf, 78896, rate=rare) == pytest.approx(0.001, rel=1e-4)
    assert sample_size(math.inf, 0.001, rate=0) == 1
    with pytest.raises(TypeError, match="rate"):
        sample_size(math.inf, 0.001)  # type: ignore[call-arg]


def test_the_columns_of_a_sample_are_those_tested() -> None:
    assert {field.name for field in fields(Sample)} == set(COLUMNS)
