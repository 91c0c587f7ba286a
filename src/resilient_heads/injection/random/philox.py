"""Random numbers that are indexed, not drawn: Philox 4x32-10, a counter-based generator.

Word ``i`` depends on the key and ``i`` alone. So trial i is the same trial whatever ran before it, on however many
machines, in whatever batches.

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
        counter: Four arrays of 32-bit words held in uint64, of one shape.
        key: Two 32-bit words.

    Returns:
        Four arrays of that shape, 32-bit words held in uint64.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = np.uint64(key[0]), np.uint64(key[1])
    for _ in range(_ROUNDS):
        left, right = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (right >> _SHIFT) ^ c1 ^ k0, right & _LOW, (left >> _SHIFT) ^ c3 ^ k1, left & _LOW
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW, (k1 + _KEY_STEPS[1]) & _LOW
    return c0, c1, c2, c3


def uniform(high: Words, low: Words) -> NDArray[np.float64]:
    """Turn two 32-bit words into a number in ``[0, 1)`` with 53 random bits."""
    return ((high << _SHIFT | low) >> np.uint64(11)).astype(np.float64) * 2.0**-53
