"""From harmful bits to failures in time (FIT): failures in a billion device hours."""

MEGABIT = 2**20


def fit_rate(harmful_bits: float, *, raw_fit_per_megabit: float = 1.0) -> float:
    """Return the FIT rate, failures in 10^9 device hours, of storage that is exposed all the time.

    Args:
        harmful_bits: Expected number of bits whose flip causes the outcome: the number of exposed bits times the
            probability that a flip in one of them causes the outcome.
        raw_fit_per_megabit: Upsets in 10^9 hours in 2^20 bits of the memory or the registers that hold the values. It
            is a property of the chip and its environment.

    >>> fit_rate(2**20, raw_fit_per_megabit=600)
    600.0
    """
    return harmful_bits / MEGABIT * raw_fit_per_megabit
