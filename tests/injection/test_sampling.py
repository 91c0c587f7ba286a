import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from resilient_heads.errors import ArgumentError, FaultError
from resilient_heads.injection.random.elements import draw_single_flips
from resilient_heads.injection.random.images import draw_images

PROPERTY = settings(max_examples=40, deadline=None, derandomize=True, database=None)
SEED = st.integers(0, 2**64 - 1)
TRIALS = st.lists(st.integers(0, 2**40), min_size=1, max_size=12, unique=True)


def numbered(trials: list[int] | range) -> NDArray[np.int64]:
    return np.array(list(trials), dtype=np.int64)


def reference_words(seed: int, stream: str, trial: int, block: int) -> list[int]:
    """Four words of a trial, in Python's integers."""
    name = hashlib.sha256(stream.encode()).digest()
    c = [
        trial % 2**32,
        trial >> 32 | block << 16,
        int.from_bytes(name[:4], "little"),
        int.from_bytes(name[4:8], "little"),
    ]
    k0, k1 = seed % 2**32, seed >> 32
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high1 ^ c[1] ^ k0, low1, high0 ^ c[3] ^ k1, low0]
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c


def reference_share(high: int, low: int) -> float:
    return ((high << 32 | low) >> 11) / 2**53


def reference_fault(seed: int, layer: str, trial: int, neurons: int, bits: int) -> tuple[int, int]:
    w0, w1, w2, _ = reference_words(seed, layer, trial, 0)
    return int(reference_share(w0, w1) * neurons), w2 * bits // 2**32


def reference_image(seed: int, trial: int, eligible: NDArray[np.bool_]) -> int:
    """Take the first eligible candidate of 16, then any eligible image."""
    for block in range(1, 17):
        w0, w1, _, _ = reference_words(seed, "\0image", trial, block)
        candidate = int(reference_share(w0, w1) * len(eligible))
        if eligible[candidate]:
            return candidate
    w0, w1, _, _ = reference_words(seed, "\0image", trial, 0)
    allowed = np.flatnonzero(eligible)
    return int(allowed[int(reference_share(w0, w1) * len(allowed))])


def chi_square(counts: NDArray[np.int64]) -> float:
    """Return how many standard deviations the statistic lies above its mean."""
    expected = counts.sum() / len(counts)
    freedom = len(counts) - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


@PROPERTY
@given(SEED, st.text("abc.01é", max_size=8), TRIALS, st.integers(1, 2**31), st.sampled_from([16, 32, 64]))
def test_faults_agree_with_python_integers(seed: int, layer: str, trials: list[int], neurons: int, bits: int) -> None:
    drawn = draw_single_flips(seed, layer, numbered(trials), neurons=neurons, word_bits=bits)
    expected = [reference_fault(seed, layer, trial, neurons, bits) for trial in trials]
    assert list(zip(drawn.neurons.tolist(), drawn.bits.tolist(), strict=True)) == expected


@PROPERTY
@given(SEED, TRIALS, st.lists(st.booleans(), min_size=1, max_size=40).filter(any))
def test_images_agree_with_python_integers(seed: int, trials: list[int], mask: list[bool]) -> None:
    eligible = np.array(mask)
    found = draw_images(seed, numbered(trials), eligible)
    assert found.tolist() == [reference_image(seed, trial, eligible) for trial in trials]
    assert eligible[found].all()


def test_draws_of_a_campaign_stay_what_they_were() -> None:
    # Stored results name trials by number: another value here means that old results can no longer be continued.
    drawn = draw_single_flips(0, "layer1.0.conv1", numbered(range(6)), neurons=4096, word_bits=32)
    assert drawn.neurons.tolist() == [606, 989, 1869, 1096, 1159, 3079]
    assert drawn.bits.tolist() == [28, 15, 2, 29, 17, 8]
    assert draw_images(0, numbered(range(6)), np.arange(100) % 3 > 0).tolist() == [43, 46, 38, 22, 98, 74]


def test_a_trial_is_the_same_in_any_subset_and_order() -> None:
    everything = numbered(range(1000))
    eligible = np.arange(50) % 4 > 0
    drawn = draw_single_flips(9, "fc", everything, neurons=777, word_bits=32)
    images = draw_images(9, everything, eligible)
    rng = np.random.default_rng(0)
    for part in (everything[::-1], rng.permutation(1000)[:100], numbered([999]), numbered([5, 5, 5])):
        some = draw_single_flips(9, "fc", part, neurons=777, word_bits=32)
        np.testing.assert_array_equal(some.neurons, drawn.neurons[part])
        np.testing.assert_array_equal(some.bits, drawn.bits[part])
        np.testing.assert_array_equal(draw_images(9, part, eligible), images[part])
    assert len(draw_single_flips(9, "fc", numbered([]), neurons=777, word_bits=32).neurons) == 0
    assert len(draw_images(9, numbered([]), eligible)) == 0


def test_another_seed_or_layer_gives_other_draws() -> None:
    trials = numbered(range(2000))
    base = draw_single_flips(1, "fc", trials, neurons=1000, word_bits=32)
    others = [
        draw_single_flips(2, "fc", trials, neurons=1000, word_bits=32),
        draw_single_flips(1 + 2**32, "fc", trials, neurons=1000, word_bits=32),
        draw_single_flips(1 + 2**63, "fc", trials, neurons=1000, word_bits=32),
        draw_single_flips(1, "fd", trials, neurons=1000, word_bits=32),
        draw_single_flips(1, "", trials, neurons=1000, word_bits=32),
        draw_single_flips(1, "fc", trials + 2**32, neurons=1000, word_bits=32),
    ]
    for other in others:
        # By chance one in 1000 neurons and one in 32 bits agree.
        assert (other.neurons == base.neurons).mean() < 0.01
        assert (other.bits == base.bits).mean() < 0.06
    eligible = np.ones(1000, dtype=bool)
    images = draw_images(1, trials, eligible)
    assert (draw_images(2, trials, eligible) == images).mean() < 0.01
    assert (draw_images(1 + 2**32, trials, eligible) == images).mean() < 0.01


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_neurons_and_bits_are_uniform(bits: int) -> None:
    drawn = draw_single_flips(12345, "features.0", numbered(range(200_000)), neurons=97, word_bits=bits)
    neurons = np.bincount(drawn.neurons, minlength=97)
    positions = np.bincount(drawn.bits, minlength=bits)
    assert len(neurons) == 97
    assert len(positions) == bits
    assert abs(chi_square(neurons)) < 4
    assert abs(chi_square(positions)) < 4
    # Jointly too: a neuron must not prefer a bit.
    joint = np.bincount(drawn.neurons * bits + drawn.bits, minlength=97 * bits)
    assert abs(chi_square(joint)) < 4


@pytest.mark.parametrize("neurons", [1, 2, 3, 10, 2**20 + 1])
@pytest.mark.parametrize("bits", [1, 16, 32, 64])
def test_draws_stay_in_range(neurons: int, bits: int) -> None:
    drawn = draw_single_flips(3, "fc", numbered(range(5000)), neurons=neurons, word_bits=bits)
    assert drawn.neurons.dtype == drawn.bits.dtype == np.int64
    assert drawn.neurons.min() >= 0
    assert drawn.neurons.max() < neurons
    assert drawn.bits.min() == 0
    assert drawn.bits.max() == bits - 1
    if neurons <= 10:
        assert set(drawn.neurons.tolist()) == set(range(neurons))


@pytest.mark.parametrize("share", [1.0, 0.7, 0.3, 0.02])
def test_images_are_uniform_over_the_eligible_ones(share: float) -> None:
    eligible = np.random.default_rng(8).random(500) < share
    images = draw_images(6, numbered(range(100_000)), eligible)
    assert eligible[images].all()
    counts = np.bincount(images, minlength=500)[eligible]
    assert counts.min() > 0
    assert abs(chi_square(counts)) < 4


def test_one_eligible_image_takes_every_trial() -> None:
    eligible = np.zeros(1000, dtype=bool)
    eligible[421] = True
    assert set(draw_images(6, numbered(range(500)), eligible).tolist()) == {421}


def test_models_that_differ_a_little_strike_mostly_the_same_images() -> None:
    rng = np.random.default_rng(9)
    first = rng.random(2000) < 0.75
    second = first ^ (rng.random(2000) < 0.03)
    trials = numbered(range(20_000))
    one, other = draw_images(4, trials, first), draw_images(4, trials, second)
    # A trial differs only if the first candidate that either model allows is not allowed by both.
    assert (one == other).mean() > 0.94
    both, either = (first & second).sum(), (first | second).sum()
    assert (one == other).mean() == pytest.approx(both / either, abs=0.01)


@pytest.mark.parametrize("mask", [np.zeros(5, dtype=bool), np.zeros(0, dtype=bool)])
def test_nothing_eligible(mask: NDArray[np.bool_]) -> None:
    with pytest.raises(FaultError, match="No image is eligible"):
        draw_images(0, numbered(range(3)), mask)


@pytest.mark.parametrize("seed", [-1, 2**64, 2**70])
def test_a_seed_out_of_range(seed: int) -> None:
    with pytest.raises(ArgumentError, match=r"seed must be a whole number from 0 to 2\*\*64 - 1, found"):
        draw_single_flips(seed, "fc", numbered(range(3)), neurons=4, word_bits=32)
    with pytest.raises(ArgumentError, match="seed"):
        draw_images(seed, numbered(range(3)), np.ones(3, dtype=bool))


def test_the_largest_seed_is_allowed() -> None:
    drawn = draw_single_flips(2**64 - 1, "fc", numbered([0]), neurons=10**6, word_bits=32)
    assert (drawn.neurons[0], drawn.bits[0]) == reference_fault(2**64 - 1, "fc", 0, 10**6, 32)
