"""Philox 4x32-10, a counter-based random number generator.

Random word ``i`` is a function of the key and of ``i`` alone, so trial i draws the same numbers in any batch, after any
restart and on any number of machines.

Source: Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*, SC 2011.
"""

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_ROUNDS = 10


def philox4x32(counter: tuple[Words, Words, Words, Words], key: tuple[int, int]) -> tuple[Words, Words, Words, Words]:
    """Return four random 32-bit words for each counter.

    Args:
        counter: Four arrays of one shape, each of 32-bit words held in uint64.
        key: Two 32-bit words.

    Returns:
        Four arrays of that shape, each of 32-bit words held in uint64.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = np.uint64(key[0]), np.uint64(key[1])
    for _ in range(_ROUNDS):
        left, right = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (right >> _SHIFT) ^ c1 ^ k0, right & _LOW, (left >> _SHIFT) ^ c3 ^ k1, left & _LOW
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW, (k1 + _KEY_STEPS[1]) & _LOW
    return c0, c1, c2, c3


def uniform(high: Words, low: Words) -> NDArray[np.float64]:
    """Turn pairs of 32-bit words into numbers in ``[0, 1)`` with 53 random bits."""
    return ((high << _SHIFT | low) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def below(word: Words, count: int) -> Words:
    """Turn 32-bit words into whole numbers in ``[0, count)``, for a count of at most 2**32."""
    return word * np.uint64(count) >> _SHIFT
