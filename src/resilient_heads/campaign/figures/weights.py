"""Sampling weights: how much each trial of a design counts in an estimate."""

from collections.abc import Sequence

import numpy as np

from resilient_heads.campaign.design.designs import Design, StratifiedDesign
from resilient_heads.campaign.design.plan import strata_of_trials
from resilient_heads.campaign.trials.columns import CampaignSite, Trials
from resilient_heads.statistics.intervals import Floats
from resilient_heads.statistics.sample import Sample


def weigh_trials(
    sites: Sequence[CampaignSite], trials: Trials, design: Design, site_weights: Floats | None = None
) -> Sample:
    """Give each trial its weight: the weight of its stratum divided by the number of trials in the stratum.

    Args:
        sites: The L sites to which ``trials.site`` refers.
        trials: N trials; the first trials of a campaign suffice.
        design: The design that drew the trials.
        site_weights: ``(L,)``, weight of each site in the mean, with sum 1; None for a single site.

    Returns:
        The trials with their weights. If a stratum has no trial, nothing is known about the whole, and every weight
        is 0.
    """
    site_weights = np.ones(1) if site_weights is None else site_weights
    stratum, weights = np.zeros(len(trials), dtype=np.int64), []
    start = 0
    for row, site in enumerate(sites):
        chosen = trials.site == row
        codes, fractions = strata_of_trials(design, site, trials.where(chosen))
        stratum[chosen] = start + codes
        weights.append(site_weights[row] * fractions)
        start += len(fractions)
    counts = np.bincount(stratum, minlength=start)
    weight = (np.concatenate(weights) / np.maximum(counts, 1))[stratum]
    if isinstance(design, StratifiedDesign) and design.by_perturbation:
        # The strata's fractions are estimates, so the weights of a site are scaled to add up to the site's weight.
        weight *= trials.weight
        sums = np.bincount(trials.site, weights=weight, minlength=len(sites))
        weight *= np.divide(site_weights, sums, out=np.zeros(len(sites)), where=sums > 0)[trials.site]
        counts = np.where((sums > 0).all(), counts, 0)
    if (counts == 0).any():
        weight[:] = 0.0
    return Sample(
        weight=weight,
        site=trials.site.astype(np.int64),
        stratum=stratum,
        image=trials.image,
        image_draw=trials.image * (int(trials.trial.max(initial=0)) + 1) + trials.trial,
    )
