"""How much each site counts in a mean, and how trials are shared out in proportion."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from resilient_heads.campaign.design.strata import Codes
from resilient_heads.campaign.trials.columns import CampaignSite
from resilient_heads.errors import ArgumentError
from resilient_heads.statistics.intervals import Floats

Weighting = Literal["layer_averaged", "bit_weighted"]
WEIGHTINGS: tuple[Weighting, ...] = ("layer_averaged", "bit_weighted")


def layer_weights(sites: Sequence[CampaignSite], weighting: Weighting) -> Floats:
    """Return what each site counts in a mean over them, ``(L,)``; the sum is 1."""
    if weighting == "layer_averaged":
        return np.full(len(sites), 1 / len(sites))
    bits: Floats = np.array([struck.site.neurons * struck.site.word_bits for struck in sites], dtype=np.float64)
    bits /= bits.sum()
    return bits


def allocate(
    trials: int, amounts: Sequence[Floats], names: Sequence[str], *, least: int | Codes = 2
) -> dict[str, tuple[int, ...]]:
    """Share trials out in proportion, ``least`` at least to each stratum, by largest remainders.

    Args:
        trials: At all sites together.
        amounts: Of each site, the share of each stratum, ``(H,)``; the sum over all is 1.
        names: Of the sites.
        least: Trials of any stratum, or of each, ``(sum of H,)``; two give its variance.

    Raises:
        ArgumentError: Fewer than ``least`` trials for each stratum.
    """
    shares = np.concatenate(amounts)
    smallest: Floats = np.broadcast_to(least, shares.shape).astype(np.float64)
    if trials < smallest.sum():
        raise ArgumentError(
            f"{trials} trials are too few for {len(shares)} strata; pass {smallest.sum():.0f} or more, or fewer strata."
        )
    ideal = np.maximum(shares / shares.sum() * trials, smallest)
    for _ in range(64):  # what the small ones got beyond their share is taken from the others, until nobody falls below
        free = ideal > smallest
        ideal[free] *= max(trials - smallest[~free].sum(), 0) / ideal[free].sum() if free.any() else 1
        ideal = np.maximum(ideal, smallest)
        if abs(ideal.sum() - trials) < 1e-9 * trials:
            break
    counts = np.floor(ideal + 1e-9).astype(np.int64)
    first = np.argsort(counts - ideal, kind="stable")[: trials - counts.sum()]
    counts[first] += 1
    ends = np.cumsum([len(own) for own in amounts])[:-1]
    parts = np.split(counts, ends)
    return {name: tuple(part.tolist()) for name, part in zip(names, parts, strict=True)}
