import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from resilient_heads.injection.random.philox import philox4x32, uniform

PROPERTY = settings(max_examples=40, deadline=None, derandomize=True, database=None)

# The "philox4x32 10" lines of the known-answer vectors that Random123 ships: counter, key, output.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def numbers(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def generate(counters: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """Return ``(N, 4)`` words for ``(N, 4)`` counters."""
    c0, c1, c2, c3 = counters.T
    return np.stack(philox4x32((c0, c1, c2, c3), key), axis=1)


def reference(counter: list[int], key: tuple[int, int]) -> list[int]:
    """Philox 4x32-10 in Python's integers, from the paper's figure."""
    c, (k0, k1) = list(counter), key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high1 ^ c[1] ^ k0, low1, high0 ^ c[3] ^ k1, low0]
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS, ids=["zeros", "ones", "pi"])
def test_known_answers(counter: str, key: str, output: str) -> None:
    k0, k1 = numbers(key)
    found = generate(np.array([numbers(counter)], dtype=np.uint64), (k0, k1))
    assert [f"{word:08x}" for word in found[0]] == output.split()
    assert reference(numbers(counter), (k0, k1)) == numbers(output)


WORD = st.integers(0, 2**32 - 1)


@PROPERTY
@given(st.lists(st.tuples(WORD, WORD, WORD, WORD), min_size=1, max_size=6), st.tuples(WORD, WORD))
def test_agrees_with_python_integers(counters: list[tuple[int, int, int, int]], key: tuple[int, int]) -> None:
    found = generate(np.array(counters, dtype=np.uint64), key)
    assert found.dtype == np.uint64
    assert found.tolist() == [reference(list(counter), key) for counter in counters]


def test_a_word_does_not_depend_on_its_batch() -> None:
    rng = np.random.default_rng(3)
    counters = rng.integers(0, 2**32, size=(257, 4), dtype=np.uint64)
    together = generate(counters, (7, 8))
    order = rng.permutation(257)
    np.testing.assert_array_equal(generate(counters[order], (7, 8)), together[order])
    for size in (1, 2, 100):
        np.testing.assert_array_equal(generate(counters[:size], (7, 8)), together[:size])


def test_the_input_is_left_alone() -> None:
    counters = np.arange(8, dtype=np.uint64).reshape(2, 4)
    generate(counters, (1, 2))
    np.testing.assert_array_equal(counters, np.arange(8).reshape(2, 4))


def test_any_input_bit_changes_about_half_of_the_output() -> None:
    rng = np.random.default_rng(4)
    counters = rng.integers(0, 2**32, size=(400, 4), dtype=np.uint64)
    base = generate(counters, (11, 12))
    for word in range(4):
        for bit in (0, 13, 31):
            changed = counters.copy()
            changed[:, word] ^= np.uint64(1 << bit)
            share = np.bitwise_count(generate(changed, (11, 12)) ^ base).sum() / (400 * 128)
            assert 0.49 < share < 0.51
    for key in ((11 ^ 1, 12), (11, 12 ^ (1 << 31))):
        assert 0.49 < np.bitwise_count(generate(counters, key) ^ base).sum() / (400 * 128) < 0.51


def test_uniform_at_its_borders() -> None:
    high = np.array([0, 0, 0, 2**31, 2**32 - 1, 2**32 - 1], dtype=np.uint64)
    low = np.array([0, 2**11 - 1, 2**11, 0, 0, 2**32 - 1], dtype=np.uint64)
    assert uniform(high, low).tolist() == [0.0, 0.0, 2.0**-53, 0.5, 1 - 2.0**-32, 1 - 2.0**-53]


@PROPERTY
@given(WORD, WORD)
def test_uniform_takes_the_upper_53_bits(high: int, low: int) -> None:
    (value,) = uniform(np.array([high], dtype=np.uint64), np.array([low], dtype=np.uint64))
    assert 0 <= value < 1
    assert int(value * 2**53) == (high << 32 | low) >> 11
