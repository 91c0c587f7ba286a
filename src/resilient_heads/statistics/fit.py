"""From harmful bits to failures in time (FIT): failures in a billion device hours."""

import math

from resilient_heads.checks import real_number

MEGABIT = 2**20


def fit_rate(harmful_bits: float, *, raw_fit_per_megabit: float, exposed_fraction: float = 1.0) -> float:
    """Return the FIT rate, failures in 10^9 device hours, of values that are stored in a memory with a raw FIT rate.

    Args:
        harmful_bits: Expected number of bits whose flip causes the outcome: the number of exposed bits times the
            probability that a flip in one of them causes the outcome.
        raw_fit_per_megabit: Upsets in 10^9 hours in 2^20 bits of the memory or the registers that hold the values. It
            is a property of the chip and its environment; the chip's vendor or a beam test gives it.
        exposed_fraction: Fraction of the time in which an upset reaches the values: they are stored, and will be read.
            With the default, 1, they are exposed all the time, so the FIT rate is an upper bound.

    Raises:
        ArgumentError: A number is negative or NaN, or the fraction is above 1.

    Source: JEDEC JESD89B, *Measurement and reporting of alpha particle and terrestrial cosmic ray induced soft errors
    in semiconductor devices*, 2021, for the unit; Mukherjee et al., *A systematic methodology to compute the
    architectural vulnerability factors for a high-performance microprocessor*, MICRO 2003, for the two factors.

    >>> fit_rate(2**20, raw_fit_per_megabit=600)
    600.0
    """
    bits = real_number("harmful_bits", harmful_bits, least=0)
    raw = real_number("raw_fit_per_megabit", raw_fit_per_megabit, least=0, below=math.inf)
    return bits / MEGABIT * raw * real_number("exposed_fraction", exposed_fraction, least=0, most=1)
