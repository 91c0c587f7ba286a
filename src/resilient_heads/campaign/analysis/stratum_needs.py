"""How many trials each stratum of a design needs, estimated from a pilot campaign."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from resilient_heads.campaign.design.allocation import layer_weights
from resilient_heads.campaign.design.designs import StratifiedDesign
from resilient_heads.campaign.design.perturbation_strata import CLASSES, PerturbationStrata
from resilient_heads.campaign.design.plan import strata_of_trials
from resilient_heads.campaign.design.strata import Codes
from resilient_heads.campaign.figures.weights import weigh_trials
from resilient_heads.campaign.result.results import CampaignResult
from resilient_heads.statistics.intervals import DEFAULT_LEVEL, Floats, normal_quantile

_LEAST_TRIALS = 8
"""Trials of each stratum if possible: with fewer, its variance is a guess."""
_PRIOR_TRIALS = 4.0
"""Weight of the other layers and strata in the estimate for a stratum, in trials."""
_PRIOR_TRIALS_OF_FRACTIONS = 2.0
"""Weight of the other layers in the estimate of a class's fraction in a layer, in trials."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class StratumNeeds:
    """What is known about the H strata of all sites, site after site.

    Attributes:
        trials: Number of trials to allocate.
        weights: ``(H,)``, weight of each stratum in the figure; the sum is 1.
        deviations: ``(H,)``, estimated standard deviation in each stratum.
        event: By how much one event changes the value of a trial.
        sizes: Number of strata of each site.
        smallest: ``(H,)``, number of trials that each stratum gets at least.
        scales: Unit of changes by the name of the site; None for strata of bits.
    """

    trials: int
    weights: Floats
    deviations: Floats
    event: float
    sizes: list[int]
    smallest: Codes
    scales: dict[str, float] | None

    def amounts(self, floor: float) -> Floats:
        """Return Neyman's fraction of the trials for each stratum, ``(H,)``, raised to the floor where it is below."""
        useful = self.weights * self.deviations
        useful /= useful.sum()
        scale = 1.0
        raised: Floats = np.maximum(useful, floor * self.weights)
        for _ in range(40):
            scale *= max(0.0, 1 - (raised.sum() - 1))
            raised = np.maximum(scale * useful, floor * self.weights)
        raised /= raised.sum()
        return raised

    def amounts_by_site(self, floor: float) -> list[Floats]:
        """Return :meth:`amounts` for each site."""
        return np.split(self.amounts(floor), np.cumsum(self.sizes)[:-1])

    def width(self, floor: float) -> float:
        """Return the expected width of the interval, with the allowance for an unseen event of ``weighted_rate``."""
        z = normal_quantile(DEFAULT_LEVEL)
        counts = np.maximum(self.amounts(floor) * self.trials, self.smallest)
        variance = float((np.square(self.weights * self.deviations) / counts).sum())
        unseen = self.event * float((self.weights / counts).max())
        return unseen + z * math.sqrt(variance + unseen * unseen) + z * math.sqrt(variance)


def needs_by_bits(pilot: CampaignResult, shape: StratifiedDesign, metric: str) -> StratumNeeds:
    """Return what the strata of a design by bits and channels need."""
    codes, fractions = [], []
    for row, site in enumerate(pilot.sites):
        site_codes, site_fractions = strata_of_trials(shape, site, pilot.trials.where(pilot.trials.site == row))
        codes.append(site_codes)
        fractions.append(site_fractions)
    return _needs(pilot, shape, metric, codes, fractions, scales=None)


def needs_by_perturbation(pilot: CampaignResult, shape: StratifiedDesign, metric: str) -> StratumNeeds:
    """Return what strata by perturbation need.

    A trial of the pilot contributes to one class by its outcome, and to the fractions of all classes by its value: it
    shows what every other flip of the value would have changed.
    """
    layers = layer_weights(pilot.sites, shape.weighting, pilot.config.fault)
    weight = weigh_trials(pilot.sites, pilot.trials, pilot.config.design, layers).weight
    if not weight.any():
        weight = np.ones(len(weight))
    scales: dict[str, float] = {}
    codes, means, counts = [], [], []
    for row, site in enumerate(pilot.sites):
        at_site = pilot.trials.site == row
        before = pilot.trials.before[at_site]
        square = np.square(np.where(np.isfinite(before), before, 0.0))
        scale = math.sqrt(float(np.average(square, weights=weight[at_site])))
        scales[site.name] = scale if 0 < scale < math.inf else 1.0
        strata = PerturbationStrata(site, pilot.config.protocol.range_detector or "clamp", scales[site.name])
        codes.append(strata.of(before, pilot.trials.after[at_site], pilot.trials.bit[at_site]))
        fractions = strata.fractions(torch.from_numpy(before).to(site.site.dtype))
        means.append(np.average(fractions, axis=0, weights=weight[at_site]))
        counts.append(float(at_site.sum()))
    smoothed: list[Floats] = [np.empty(0)] * len(means)
    for rows in _alike(pilot, [CLASSES] * len(means)):
        for row, fraction in zip(
            rows, smooth_fractions([means[row] for row in rows], [counts[row] for row in rows]), strict=True
        ):
            smoothed[row] = fraction
    return _needs(pilot, shape, metric, codes, smoothed, scales=scales)


def _needs(
    pilot: CampaignResult,
    shape: StratifiedDesign,
    metric: str,
    codes: Sequence[Codes],
    fractions: Sequence[Floats],
    *,
    scales: dict[str, float] | None,
) -> StratumNeeds:
    """Return the needs of strata.

    Args:
        pilot: The pilot.
        shape: The design without its counts.
        metric: The figure that becomes precise.
        codes: For each site, the stratum of each of its trials.
        fractions: For each site, the fraction of its faults in each stratum.
        scales: Unit of changes by the name of the site.
    """
    values = pilot.trials.values(metric)
    usable = np.isfinite(values)
    square = np.square(values[usable])
    event = math.sqrt(float(np.square(square).sum() / square.sum()))
    sizes = [len(site_fractions) for site_fractions in fractions]
    most = max(sizes)
    cell = np.empty(len(values), dtype=np.int64)
    for row, site_codes in enumerate(codes):
        cell[pilot.trials.site == row] = row * most + site_codes
    counts, sums, squares = (
        part.reshape(-1, most) for part in _moments(cell[usable], values[usable], len(sizes) * most)
    )
    deviations = np.zeros((len(sizes), most))
    for rows in _alike(pilot, sizes):
        deviations[rows] = estimate_deviations(counts[rows], sums[rows], squares[rows], event)
    layers = layer_weights(pilot.sites, shape.weighting, pilot.config.fault)
    weights = np.concatenate([weight * fraction for weight, fraction in zip(layers, fractions, strict=True)])
    least = max(2, min(_LEAST_TRIALS, shape.total_trials // (4 * len(weights))))
    return StratumNeeds(
        trials=shape.total_trials,
        weights=weights,
        deviations=np.concatenate([row[:size] for row, size in zip(deviations, sizes, strict=True)]),
        event=event,
        sizes=sizes,
        smallest=np.clip(np.ceil(weights * shape.total_trials), 2, least).astype(np.int64),
        scales=scales,
    )


def _alike(pilot: CampaignResult, sizes: Sequence[int]) -> list[list[int]]:
    """Return groups of sites whose strata have the same meaning: the same dtype and the same number of strata."""
    groups: dict[tuple[torch.dtype, int], list[int]] = {}
    for row, (site, size) in enumerate(zip(pilot.sites, sizes, strict=True)):
        groups.setdefault((site.site.dtype, size), []).append(row)
    return list(groups.values())


def smooth_fractions(means: Sequence[Floats], counts: Sequence[float]) -> Floats:
    """Return the fraction of each class in each layer, ``(L, CLASSES)``: shrunk towards all layers', never 0.

    Args:
        means: For each layer, the mean fractions among the flips of the values in its trials, ``(CLASSES,)``.
        counts: For each layer, its number of trials.
    """
    table = np.stack(means)
    seen = table * np.asarray(counts)[:, None] + _PRIOR_TRIALS_OF_FRACTIONS * table.mean(axis=0) + 0.5 / CLASSES
    fractions: Floats = seen / seen.sum(axis=1, keepdims=True)
    return fractions


def estimate_deviations(counts: Floats, sums: Floats, squares: Floats, event: float) -> Floats:
    """Estimate standard deviations, ``(L, H)``, from the moments of L layers with the same H strata."""
    # Half an event more than was seen, as in Jeffreys' prior: no event in the pilot does not mean that there is none.
    total = counts.sum(axis=0) + 1
    mean = (sums.sum(axis=0) + event / 2) / total
    square = (squares.sum(axis=0) + event * event / 2) / total
    # How much more or less a layer shows than its strata lead to expect.
    fragility = (squares.sum(axis=1) + event * event) / ((square * counts).sum(axis=1) + event * event)
    # A rate is raised to a half at most: beyond that its variance would fall, and the rate could pass 1.
    factor = np.minimum(fragility[:, None], np.maximum(1.0, event * event / (2 * square)))
    shrunk_mean = (sums + _PRIOR_TRIALS * mean * factor) / (counts + _PRIOR_TRIALS)
    shrunk_square = (squares + _PRIOR_TRIALS * square * factor) / (counts + _PRIOR_TRIALS)
    deviations: Floats = np.sqrt(np.maximum(shrunk_square - shrunk_mean * shrunk_mean, 1e-6 * shrunk_square))
    return deviations


def _moments(cell: Codes, values: Floats, size: int) -> tuple[Floats, Floats, Floats]:
    """Return the number of values in each cell, their sum and the sum of their squares."""
    counts, sums, squares = (
        np.bincount(cell, weights=part, minlength=size).astype(np.float64)
        for part in (np.ones_like(values), values, np.square(values))
    )
    return counts, sums, squares
