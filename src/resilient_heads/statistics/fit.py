"""Failures in time: from the probability that a flip is harmful to failures in a billion hours."""

MEGABIT = 2**20


def fit_rate(harmful_bits: float, *, raw_fit_per_megabit: float = 1.0) -> float:
    """Return the FIT rate (failures in 10^9 device hours) of storage that is exposed all the time.

    Args:
        harmful_bits: Expected number of bits whose flip would do harm: bits exposed times the probability that a flip
            in one of them ends in the outcome.
        raw_fit_per_megabit: Upsets in 10^9 hours for each 2^20 bits of the memory or registers that hold the values; a
            property of the chip and its surroundings.

    >>> fit_rate(2**20, raw_fit_per_megabit=600)
    600.0
    """
    return harmful_bits / MEGABIT * raw_fit_per_megabit
