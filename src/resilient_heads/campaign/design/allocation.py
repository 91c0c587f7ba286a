"""The weight of each site in a mean, and the number of trials in each stratum."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from resilient_heads.campaign.design.fault_space import fault_places
from resilient_heads.campaign.design.strata import Codes
from resilient_heads.campaign.trials.columns import CampaignSite
from resilient_heads.errors import ArgumentError
from resilient_heads.injection.faults.fault_model import FaultModel
from resilient_heads.statistics.intervals import Floats

Weighting = Literal["layer_averaged", "bit_weighted"]
WEIGHTINGS: tuple[Weighting, ...] = ("layer_averaged", "bit_weighted")


def layer_weights(sites: Sequence[CampaignSite], weighting: Weighting, fault: FaultModel) -> Floats:
    """Return the weight of each site in a mean over all sites, ``(L,)``; the sum is 1.

    ``"bit_weighted"`` gives every place that the fault can take the same weight, at all sites.
    """
    if weighting == "layer_averaged":
        return np.full(len(sites), 1 / len(sites))
    places: Floats = np.array([fault_places(fault, site) for site in sites], dtype=np.float64)
    places /= places.sum()
    return places


def allocate(
    trials: int, amounts: Sequence[Floats], names: Sequence[str], *, least: int | Codes = 2
) -> dict[str, tuple[int, ...]]:
    """Allocate trials to strata in proportion to their amounts, by largest remainders.

    Args:
        trials: Number of trials at all sites together.
        amounts: For each site, the amounts of its strata, ``(H,)``; the sum over all sites is 1.
        names: Names of the sites.
        least: Smallest number of trials in every stratum, or in each, ``(sum of H,)``; two trials give a variance.

    Returns:
        The number of trials in each stratum, by the name of the site.

    Raises:
        ArgumentError: There are fewer trials than the strata need.
    """
    wanted = np.concatenate(amounts)
    smallest: Floats = np.broadcast_to(least, wanted.shape).astype(np.float64)
    if trials < smallest.sum():
        raise ArgumentError(
            f"{trials} trials are too few for {len(wanted)} strata; pass {smallest.sum():.0f} or more, or a design "
            "with fewer strata."
        )
    ideal = np.maximum(wanted / wanted.sum() * trials, smallest)
    for _ in range(64):  # until taking the excess from the large strata makes no further stratum too small
        free = ideal > smallest
        ideal[free] *= max(trials - smallest[~free].sum(), 0) / ideal[free].sum() if free.any() else 1
        ideal = np.maximum(ideal, smallest)
        if abs(ideal.sum() - trials) < 1e-9 * trials:
            break
    counts = np.floor(ideal + 1e-9).astype(np.int64)
    largest_remainders = np.argsort(counts - ideal, kind="stable")[: trials - counts.sum()]
    counts[largest_remainders] += 1
    parts = np.split(counts, np.cumsum([len(part) for part in amounts])[:-1])
    return {name: tuple(part.tolist()) for name, part in zip(names, parts, strict=True)}
