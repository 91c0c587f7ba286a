"""Fault models: draws against references, and what they do to values."""

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import resilient_heads as rh
from resilient_heads.errors import ArgumentError, FaultError
from resilient_heads.incremental.recording.words import words
from resilient_heads.injection.faults.draws import Draws
from resilient_heads.injection.faults.effects import Effect
from resilient_heads.injection.faults.fault_model import FaultModel
from resilient_heads.injection.faults.ranges import apply_range, zero_out_of_range
from resilient_heads.injection.formats.base import NumberFormat
from resilient_heads.injection.random.elements import draw_errors, draw_single_flips

PROPERTY = settings(max_examples=30, deadline=None, derandomize=True, database=None)


def trials(count: int) -> NDArray[np.int64]:
    return np.arange(count, dtype=np.int64)


def chi_square(counts: NDArray[np.int64], expected: NDArray[np.float64] | float | None = None) -> float:
    """Return how many standard deviations the statistic lies above its mean."""
    due = np.full(len(counts), counts.mean()) if expected is None else np.broadcast_to(expected, counts.shape)
    freedom = len(counts) - 1
    return float((((counts - due) ** 2 / due).sum() - freedom) / math.sqrt(2 * freedom))


MODELS = {
    "default": FaultModel(),
    "named bits": FaultModel(effect=rh.faults.Flip(bits=(30, 31))),
    "three bits": FaultModel(effect=rh.faults.Flip(count=3)),
    "bit burst": FaultModel(effect=rh.faults.Flip(count=4, adjacent=True)),
    "five neurons": FaultModel(elements=rh.faults.RandomElements(count=5)),
    "neuron burst": FaultModel(
        elements=rh.faults.RandomElements(count=5, adjacent=True), effect=rh.faults.Flip(count=2)
    ),
    "stuck at 0": FaultModel(effect=rh.faults.StuckAt(value=0)),
    "stuck at 1": FaultModel(elements=rh.faults.RandomElements(count=2), effect=rh.faults.StuckAt(value=1, bits=(3,))),
    "error rate": FaultModel(elements=rh.faults.ErrorRate(rate=0.004)),
    "error rate of the sign": FaultModel(
        elements=rh.faults.ErrorRate(rate=0.1), effect=rh.faults.StuckAt(value=1, bits=(31,))
    ),
    "random word": FaultModel(effect=rh.faults.RandomWord()),
    "random value": FaultModel(
        elements=rh.faults.RandomElements(count=3), effect=rh.faults.RandomValue(low=-2.0, high=5.0)
    ),
    "zero": FaultModel(elements=rh.faults.AllElements(), effect=rh.faults.SetValue()),
    "sign": FaultModel(effect=rh.faults.Negate()),
    "maximum": FaultModel(elements=rh.faults.RandomElements(count=2), effect=rh.faults.LayerMaximum()),
    "half": FaultModel(format=rh.formats.FloatingPoint(exponent_bits=5, mantissa_bits=10)),
    "fixed": FaultModel(
        elements=rh.faults.RandomElements(count=2), format=rh.formats.FixedPoint(integer_bits=3, fraction_bits=4)
    ),
    "int8": FaultModel(format=rh.formats.AffineInteger(scale=tuple([0.125] * 4))),
    "block": FaultModel(format=rh.formats.BlockFloat(block_size=8)),
    "shared exponent": FaultModel(format=rh.formats.BlockFloat(block_size=7), shared=True),
    "bias": FaultModel(format=rh.formats.AdaptivFloat(), shared=True, effect=rh.faults.Flip(bits=(0,))),
    "scale": FaultModel(format=rh.formats.AffineInteger(), shared=True, effect=rh.faults.StuckAt(value=1, bits=(23,))),
}


def corrupted(model: FaultModel, rows: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Return whole rows after the fault, written by plain Python."""
    around = model.context(rows, draws) if model.needs_context else None
    after = model.corrupt(rows.gather(1, torch.from_numpy(draws.neurons).clamp(min=0)), draws, context=around)
    result = rows.clone()
    for row, column in np.argwhere(draws.neurons >= 0):
        result[row, draws.neurons[row, column]] = after[row, column]
    return result


def bits_of(x: torch.Tensor) -> list[int]:
    return (words(x).flatten().to(torch.int64) & 0xFFFFFFFF).tolist()


@PROPERTY
@given(st.integers(0, 2**64 - 1), st.integers(1, 10**6), st.sampled_from([8, 16, 32, 64]))
def test_the_default_keeps_the_draws_of_single_flips(seed: int, neurons: int, bits: int) -> None:
    numbers = np.array([0, 5, 17, 2**40], dtype=np.int64)
    single = draw_single_flips(seed, "fc", numbers, neurons=neurons, word_bits=bits)
    draws = FaultModel().draw(seed, "fc", numbers, neurons=neurons, word_bits=bits)
    assert draws.neurons.tolist() == single.neurons[:, None].tolist()
    assert draws.bits.tolist() == single.bits[:, None].tolist()
    assert draws.flip.view(np.uint64).tolist() == [[1 << bit] for bit in single.bits.tolist()]
    assert (draws.keep == -1).all()


@pytest.mark.parametrize("kind", MODELS)
def test_a_trial_is_the_same_in_any_batch(kind: str) -> None:
    model = MODELS[kind]
    rows = torch.randn(20, 52)
    whole = corrupted(model, rows, model.draw(7, "conv", trials(20), neurons=52, word_bits=32))
    for part in (np.array([3]), np.array([11, 4]), np.arange(6, 19)):
        draws = model.draw(7, "conv", part, neurons=52, word_bits=32)
        assert torch.equal(words(corrupted(model, rows[part], draws)), words(whole[part]))
    if kind not in ("zero", "bias", "scale"):  # which draw nothing
        other = corrupted(model, rows, model.draw(8, "conv", trials(20), neurons=52, word_bits=32))
        assert not torch.equal(words(other), words(whole))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", MODELS)
def test_only_what_is_drawn_changes(kind: str, dtype: torch.dtype) -> None:
    model, width = MODELS[kind], torch.finfo(dtype).bits
    if isinstance(model.effect, rh.faults.Flip | rh.faults.StuckAt) and model.effect.bits and width < 32:
        return
    rows = torch.randn(9, 52).to(dtype)
    rows[:, 3] = math.nan
    draws = model.draw(1, "conv", trials(9), neurons=52, word_bits=width)
    after = corrupted(model, rows, draws)
    assert after.dtype == dtype
    changed = set(map(tuple, (words(after) != words(rows)).nonzero().tolist()))
    struck = {(row, n) for row, line in enumerate(draws.neurons.tolist()) for n in line if n >= 0}
    assert changed <= struck
    if isinstance(model.effect, rh.faults.Flip) and model.format is None:
        assert changed == struck


def test_sets_of_neurons_are_uniform() -> None:
    draws = FaultModel(elements=rh.faults.RandomElements(count=3)).draw(3, "x", trials(40_000), neurons=7, word_bits=32)
    assert all(len(set(line)) == 3 for line in draws.neurons.tolist())
    counts = Counter(tuple(sorted(line)) for line in draws.neurons.tolist())
    sets = np.array([counts[chosen] for chosen in combinations(range(7), 3)])
    assert sets.sum() == 40_000
    assert abs(chi_square(sets)) < 4


def test_sets_of_bits_are_uniform() -> None:
    draws = FaultModel(elements=rh.faults.RandomElements(count=2), effect=rh.faults.Flip(count=2)).draw(
        3, "x", trials(20_000), neurons=9, word_bits=8
    )
    masks = draws.flip.reshape(-1)
    assert all(int(mask).bit_count() == 2 for mask in masks)
    counts = Counter(masks.tolist())
    assert abs(chi_square(np.array([counts[1 << a | 1 << b] for a, b in combinations(range(8), 2)]))) < 4
    # The bits of a trial's first neuron say nothing about those of its second.
    pairs = Counter((int(a), int(b)) for a, b in draws.flip.tolist())
    assert abs(chi_square(np.array([pairs[one, other] for one in counts for other in counts]))) < 4


def test_bursts_are_runs_and_uniform() -> None:
    draws = FaultModel(
        elements=rh.faults.RandomElements(count=3, adjacent=True), effect=rh.faults.Flip(count=4, adjacent=True)
    ).draw(3, "x", trials(20_000), neurons=10, word_bits=16)
    assert (np.diff(draws.neurons, axis=1) == 1).all()
    assert abs(chi_square(np.bincount(draws.neurons[:, 0], minlength=8))) < 4
    assert draws.neurons.max() == 9
    starts = Counter(draws.flip[:, 0].tolist())
    assert set(starts) == {0b1111 << start for start in range(13)}
    assert abs(chi_square(np.array(list(starts.values())))) < 4
    everything = FaultModel(elements=rh.faults.RandomElements(count=10), effect=rh.faults.Flip(count=16)).draw(
        0, "x", trials(3), neurons=10, word_bits=16
    )
    assert np.sort(everything.neurons, axis=1).tolist() == [list(range(10))] * 3
    assert (everything.flip == 0xFFFF).all()
    whole = FaultModel(effect=rh.faults.Flip(count=64, adjacent=True)).draw(0, "x", trials(2), neurons=4, word_bits=64)
    assert (whole.flip == -1).all()


@pytest.mark.parametrize(("places", "rate"), [(10, 0.001), (1000, 1e-5), (64, 0.02), (80, 0.5), (2000, 0.002)])
def test_errors_are_independent_and_of_the_right_rate(places: int, rate: float) -> None:
    count = 20_000
    found = draw_errors(11, "fc", trials(count), population=places, rate=rate)
    chosen = found >= 0
    assert (np.diff(np.where(chosen, found, 10**9), axis=1)[chosen[:, 1:]] > 0).all(), (
        "not ascending, or twice the same"
    )
    assert found.max(initial=0) < places
    # The number of errors of a trial is binomial: mean, variance, and the share of trials without any.
    numbers, mean = chosen.sum(axis=1), places * rate
    variance = mean * (1 - rate)
    assert abs(numbers.mean() - mean) < 4.5 * math.sqrt(variance / count)
    fourth = variance * (1 + 3 * variance * (1 - 2 / places))
    assert abs(numbers.var() - variance) < 4.5 * math.sqrt((fourth - variance**2) / count) + 1e-9
    none = (1 - rate) ** places
    assert abs((numbers == 0).mean() - none) < 4.5 * math.sqrt(none * (1 - none) / count) + 1e-9
    # Every place alike.
    if mean * count / places > 20:
        each = np.bincount(found[chosen], minlength=places)
        statistic = ((each - count * rate) ** 2 / (count * rate * (1 - rate))).sum()
        assert abs(statistic - places) < 4.5 * math.sqrt(2 * places)


def test_a_rate_below_one_error_a_layer_is_not_rounded_away() -> None:
    """A layer of 1,000 words at 5e-6: 0.16 errors are expected, which others round to none."""
    model = FaultModel(elements=rh.faults.ErrorRate(rate=5e-6))
    draws = model.draw(2, "conv", trials(50_000), neurons=1000, word_bits=32)
    errors = (draws.neurons >= 0).sum()
    assert abs(errors - 8000) < 4.5 * math.sqrt(8000)


def test_extreme_rates() -> None:
    assert draw_errors(0, "x", trials(3), population=50, rate=0.0).shape == (3, 0)
    assert draw_errors(0, "x", trials(2), population=50, rate=1.0).tolist() == [list(range(50))] * 2
    assert draw_errors(0, "x", trials(4), population=10**15, rate=1e-18).shape == (4, 0)
    every = FaultModel(elements=rh.faults.ErrorRate(rate=1.0)).draw(0, "x", trials(2), neurons=5, word_bits=32)
    assert every.neurons.tolist() == [list(range(5))] * 2
    assert (every.flip == 0xFFFFFFFF).all()


def test_large_populations_are_drawn_in_pieces() -> None:
    places, rate = 20_000_000, 4e-3
    found = draw_errors(5, "model", trials(1), population=places, rate=rate)[0]
    assert abs(len(found) - 80_000) < 4.5 * math.sqrt(80_000)
    assert (np.diff(found) > 0).all()
    assert abs(chi_square(np.bincount(found * 50 // places, minlength=50))) < 4


def test_an_error_rate_gathers_the_bits_of_a_word() -> None:
    model = FaultModel(elements=rh.faults.ErrorRate(rate=0.3), effect=rh.faults.Flip(bits=(1, 5, 31)))
    draws = model.draw(5, "fc", trials(4000), neurons=6, word_bits=32)
    assert all(len(set(line)) == len(line) for line in ([n for n in row if n >= 0] for row in draws.neurons.tolist()))
    struck = draws.neurons >= 0
    assert set(np.unique(draws.flip[struck]).tolist()) == {
        sum(1 << bit for bit in chosen) for size in (1, 2, 3) for chosen in combinations((1, 5, 31), size)
    }
    assert (draws.flip[~struck] == 0).all()
    total = sum(int(mask).bit_count() for mask in draws.flip[struck].tolist())
    assert abs(total - 4000 * 18 * 0.3) < 4.5 * math.sqrt(4000 * 18 * 0.21)


def test_permanent_faults_strike_the_same_place_in_every_trial() -> None:
    for elements in (rh.faults.RandomElements(count=2, fixed=True), rh.faults.ErrorRate(rate=0.05, fixed=True)):
        draws = FaultModel(elements=elements, effect=rh.faults.StuckAt(value=1)).draw(
            9, "fc", trials(30), neurons=40, word_bits=32
        )
        assert len({tuple(line) for line in draws.neurons.tolist()}) == 1
        assert len({tuple(line) for line in draws.flip.tolist()}) == 1


VALUES = [1.5, -0.0, 3.0, -2.0, math.inf, 0.25]


@pytest.mark.parametrize(
    ("effect", "expected"),
    [
        (rh.faults.StuckAt(value=1, bits=(31,)), [-1.5, -0.0, -3.0, -2.0, -math.inf, -0.25]),
        (rh.faults.StuckAt(value=0, bits=(31,)), [1.5, 0.0, 3.0, 2.0, math.inf, 0.25]),
        (rh.faults.Flip(bits=31), [-1.5, 0.0, -3.0, 2.0, -math.inf, -0.25]),  # type: ignore[arg-type]
        (rh.faults.Flip(bits=(22, 23)), [2.0**-1, -(2.0**-126) * 1.5, 3.0 * 2 - 2.0 * 2 + 4 - 0.0, 0, 0, 0]),
        (rh.faults.SetValue(), [0.0] * 6),
        (rh.faults.SetValue(value=-7.25), [-7.25] * 6),
        (rh.faults.Negate(), [-1.5, 0.0, -3.0, 2.0, -math.inf, -0.25]),
        (rh.faults.LayerMaximum(), [math.inf] * 6),
    ],
    ids=str,
)
def test_effects_by_hand(effect: Effect, expected: list[float]) -> None:
    rows = torch.tensor([VALUES])
    model = FaultModel(elements=rh.faults.AllElements(), effect=effect)
    found = corrupted(model, rows, model.draw(0, "x", trials(1), neurons=6, word_bits=32))[0]
    if isinstance(effect, rh.faults.Flip) and effect.bits == (22, 23):
        assert bits_of(found) == [word ^ 0xC00000 for word in bits_of(rows)]
        return
    assert found.tolist() == expected
    assert torch.signbit(found).tolist() == [math.copysign(1, value) < 0 for value in expected]


def test_the_maximum_is_that_of_the_own_sample_without_nan() -> None:
    rows = torch.tensor([[1.0, 5.0, math.nan, -9.0], [-1.0, -2.0, -3.0, -4.0]])
    model = FaultModel(elements=rh.faults.RandomElements(count=4), effect=rh.faults.LayerMaximum())
    assert corrupted(model, rows, model.draw(0, "x", trials(2), neurons=4, word_bits=32)).tolist() == [
        [5.0] * 4,
        [-1.0] * 4,
    ]


def test_random_values_and_words() -> None:
    model = FaultModel(elements=rh.faults.AllElements(), effect=rh.faults.RandomValue(low=-2.0, high=6.0))
    found = corrupted(model, torch.zeros(1000, 20), model.draw(0, "x", trials(1000), neurons=20, word_bits=32))
    assert found.min() >= -2
    assert found.max() < 6
    assert abs(chi_square(torch.histc(found, 16, -2, 6).long().numpy())) < 4
    model = FaultModel(elements=rh.faults.AllElements(), effect=rh.faults.RandomWord())
    found = corrupted(model, torch.zeros(2000, 5), model.draw(0, "x", trials(2000), neurons=5, word_bits=32))
    ones = [sum(word >> bit & 1 for word in bits_of(found)) for bit in range(32)]
    assert all(abs(count - 5000) < 4.5 * 50 for count in ones)


def test_a_nan_that_is_not_struck_keeps_its_payload() -> None:
    rows = torch.tensor([[0x7F800001, 0x3F800000, 0x7FC01234]], dtype=torch.int32).view(torch.float32)
    draws = Draws.of_masks(
        np.array([[1, -1, -1]]), np.full((1, 3), ~np.uint64(0)), np.array([[1, 0, 0]], dtype=np.uint64)
    )
    for form in (None, rh.formats.FloatingPoint(exponent_bits=8, mantissa_bits=7)):
        model = FaultModel(format=form)
        after = model.corrupt(rows[:, [1, 0, 2]], draws)
        assert bits_of(after)[1:] == [0x7F800001, 0x7FC01234]


def test_a_flip_through_a_format() -> None:
    """1.1 is 1.0 in a step of 1/4, whose lowest bit flips to 1.25."""
    form = rh.formats.FixedPoint(integer_bits=3, fraction_bits=2)
    model = FaultModel(elements=rh.faults.AllElements(), effect=rh.faults.Flip(bits=(0,)), format=form)
    rows = torch.tensor([[1.1, -2.0]])
    assert corrupted(model, rows, model.draw(0, "x", trials(1), neurons=2, word_bits=32)).tolist() == [[1.25, -1.75]]
    model = FaultModel(elements=rh.faults.AllElements(), effect=rh.faults.SetValue(value=0.3), format=form)
    assert corrupted(model, rows, model.draw(0, "x", trials(1), neurons=2, word_bits=32)).tolist() == [[0.25, 0.25]]


def test_shared_words_are_struck_in_all_their_values() -> None:
    rows = torch.tensor([[1.0, 0.5, 8.0, 2.0, 0.25]])
    form = rh.formats.BlockFloat(exponent_bits=5, mantissa_bits=6, block_size=2)
    seen = set()
    for seed in range(30):
        model = FaultModel(effect=rh.faults.Flip(bits=(0,)), format=form, shared=True)
        draws = model.draw(seed, "x", trials(1), neurons=5, word_bits=32)
        found = corrupted(model, rows, draws)[0].tolist()
        # Stored exponents 15, 18 and 13: the lowest bit of an odd one falls to 0, of an even one rises to 1.
        expected = {
            (0, 1): [0.5, 0.25, 8.0, 2.0, 0.25],
            (2, 3): [1.0, 0.5, 16.0, 4.0, 0.25],
            (4, -1): [1.0, 0.5, 8.0, 2.0, 0.125],
        }
        struck = tuple(draws.neurons[0].tolist())
        assert found == expected[struck]
        seen.add(struck)
    assert len(seen) == 3


def test_an_error_rate_over_shared_words() -> None:
    form = rh.formats.BlockFloat(exponent_bits=5, mantissa_bits=8, block_size=2)
    model = FaultModel(elements=rh.faults.ErrorRate(rate=0.05), format=form, shared=True)
    rows = torch.randn(300, 6)
    draws = model.draw(4, "x", trials(300), neurons=6, word_bits=32)
    struck = [sorted(n for n in line if n >= 0) for line in draws.neurons.tolist()]
    assert {tuple(line) for line in struck} >= {(), (0, 1), (2, 3), (4, 5), (0, 1, 2, 3)}
    assert all(line in ([], [0, 1], [2, 3], [4, 5]) or len(line) in (4, 6) for line in struck)
    changed = words(corrupted(model, rows, draws)) != words(rows)
    assert all(set(row.nonzero().flatten().tolist()) <= set(line) for row, line in zip(changed, struck, strict=True))


def test_draws_of_a_format_follow_its_width() -> None:
    draws = FaultModel(format=rh.formats.FixedPoint(integer_bits=2, fraction_bits=3)).draw(
        0, "x", trials(3000), neurons=10, word_bits=32
    )
    assert set(draws.bits.flatten().tolist()) == set(range(6))
    draws = FaultModel(format=rh.formats.AffineInteger(), shared=True).draw(
        0, "x", trials(3000), neurons=10, word_bits=16
    )
    assert draws.neurons.shape == (3000, 10)
    assert set(draws.bits.flatten().tolist()) == set(range(32))


def test_the_range_detector() -> None:
    edge = torch.tensor([2.0, -2.0, 2.1, math.nan, math.inf, -0.0])
    assert zero_out_of_range(edge, 2.0).tolist() == [2.0, -2.0, 0.0, 0.0, 0.0, -0.0]
    assert apply_range(edge, None) is edge
    for wrong in ({"range_limit": -1.0}, {"range_limit": math.nan}, {"range_limit": 1.0, "detector": "off"}):
        with pytest.raises(ArgumentError, match="range"):
            apply_range(edge, **{"detector": "zero", **wrong})  # type: ignore[arg-type]
    with pytest.raises(FaultError, match=r"needs floating values, found torch\.int8"):
        apply_range(torch.zeros(1, dtype=torch.int8), 1.0)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_float8_detectors(dtype: torch.dtype) -> None:
    values = torch.tensor([3.0, -3.0, 1.0, math.nan]).to(dtype)
    assert apply_range(values, 2.0).float().tolist() == [2.0, -2.0, 1.0, 2.0]
    assert apply_range(values, 2.0, "zero").float().tolist() == [0.0, 0.0, 1.0, 0.0]


def test_draws_of_another_dtype_are_refused() -> None:
    """As under autocast, when a campaign took the output for float32."""
    draws = FaultModel(effect=rh.faults.Flip(bits=(3, 20))).draw(0, "x", trials(1), neurons=1, word_bits=32)
    with pytest.raises(FaultError, match="Bit 20 does not exist in a word of 16 bits"):
        FaultModel().corrupt(torch.ones(1, 1, dtype=torch.bfloat16), draws)


def test_more_elements_than_a_trial_has_blocks() -> None:
    model = FaultModel(elements=rh.faults.AllElements(), effect=rh.faults.RandomValue(low=0.0, high=1.0))
    uniforms = model.draw(0, "x", trials(2), neurons=150_000, word_bits=32).uniforms
    assert len(np.unique(uniforms)) == 300_000
    assert abs(chi_square(np.bincount((uniforms * 50).astype(np.int64).reshape(-1), minlength=50))) < 4
    few = model.draw(0, "x", trials(2), neurons=1000, word_bits=32).uniforms
    assert np.array_equal(few, uniforms[:, :1000])


def test_three_bits_against_plain_floyd() -> None:
    """The i-th neuron takes its first bit from block i, the others from the blocks behind."""
    from resilient_heads.injection.random.streams import random_words

    draws = FaultModel(elements=rh.faults.RandomElements(count=4), effect=rh.faults.Flip(count=3)).draw(
        9, "x", trials(50), neurons=20, word_bits=16
    )
    for trial in range(50):
        blocks = [[int(w[0]) for w in random_words(9, "x", np.array([trial]), block=b)] for b in range(6)]
        for i in range(4):
            chosen = {blocks[i][2] * 14 >> 32}
            for j in range(2):
                place = i * 2 + j
                candidate = blocks[4 + place // 4][place % 4] * (15 + j) >> 32
                chosen.add(14 + j if candidate in chosen else candidate)
            assert draws.flip[trial, i] == sum(1 << bit for bit in chosen)


HALF: NumberFormat = rh.formats.FloatingPoint(exponent_bits=5, mantissa_bits=10)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: rh.faults.Flip(bits=()), "at least one bit"),
        (lambda: rh.faults.Flip(bits=(3, 3)), "none twice"),
        (lambda: rh.faults.Flip(bits=(3,), count=2), "Give either bits"),
        (lambda: rh.faults.Flip(bits=(1.5,)), "bits must be a whole number"),  # type: ignore[arg-type]
        (lambda: rh.faults.Flip(count=0), "count must be a whole number of at least 1"),
        (lambda: rh.faults.StuckAt(value=2), "value must be 0 or 1"),  # type: ignore[arg-type]
        (lambda: rh.faults.RandomValue(low=1.0, high=1.0), "high must be a number above 1"),
        (lambda: rh.faults.ErrorRate(rate=1.5), r"rate must be a number of at least 0 and of at most 1"),
        (lambda: rh.faults.ErrorRate(rate=math.nan), r"rate must be a number of at least 0 and of at most 1"),
        (lambda: rh.faults.IndexedElements(indices=((1,), (1,))), "named twice"),
        (
            lambda: FaultModel(elements=rh.faults.ErrorRate(rate=0.1), effect=rh.faults.SetValue()),
            "bit error rate needs",
        ),
        (
            lambda: FaultModel(elements=rh.faults.ErrorRate(rate=0.1), effect=rh.faults.Flip(count=2)),
            "bit error rate needs",
        ),
        (lambda: FaultModel(effect="flip"), "effect must be an effect"),  # type: ignore[arg-type]
        (lambda: FaultModel(format="fp16"), "format must be a number format"),  # type: ignore[arg-type]
        (lambda: FaultModel(shared=True), "shared=True needs a format"),
        (lambda: FaultModel(format=HALF, shared=True), "shared=True needs a format"),
        (
            lambda: FaultModel(format=rh.formats.BlockFloat(), shared=True, effect=rh.faults.SetValue()),
            "needs Flip, StuckAt or RandomWord",
        ),
        (
            lambda: FaultModel(effect=rh.faults.Flip(bits=(32,))).draw(0, "x", trials(1), neurons=3, word_bits=32),
            "Bit 32 does not",
        ),
        (
            lambda: FaultModel(effect=rh.faults.Flip(count=9)).draw(0, "x", trials(1), neurons=3, word_bits=8),
            "count=9 different bits",
        ),
        (
            lambda: FaultModel(elements=rh.faults.RandomElements(count=4)).draw(
                0, "x", trials(1), neurons=3, word_bits=8
            ),
            "count=4 different el",
        ),
        (lambda: FaultModel().draw(-1, "x", trials(1), neurons=3, word_bits=8), "seed must be a whole number"),
        (
            lambda: FaultModel(effect=rh.faults.LayerMaximum()).corrupt(
                torch.ones(1, 1), FaultModel().draw(0, "x", trials(1), neurons=1, word_bits=8)
            ),
            "needs context=",
        ),
    ],
)
def test_choices_that_do_not_go_together(build: object, message: str) -> None:
    with pytest.raises((ArgumentError, FaultError), match=message):
        build()  # type: ignore[operator]
