"""From a pilot campaign to the design that knows most for the same trials."""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from resilient_heads.campaign.design import WEIGHTINGS, Stratified, Weighting, allocate, layer_weights
from resilient_heads.campaign.results import CampaignResult
from resilient_heads.campaign.strata import By, Codes
from resilient_heads.campaign.trials import RATES
from resilient_heads.errors import ResultError
from resilient_heads.metrics.intervals import DEFAULT_LEVEL, Floats, normal_quantile

_LEAST = 8
"""Trials of each stratum: with fewer its variance is a guess."""
_PRIOR = 4.0
"""Trials that the other layers and strata count for in each stratum."""
_FLOORS = np.linspace(0.1, 0.95, 35)


def neyman(
    pilot: CampaignResult,
    *,
    trials: int,
    metric: str = "sdc",
    weighting: Weighting = "per_layer",
    by: tuple[By, ...] = ("magnitude",),
    channel_groups: int = 4,
    image_groups: int = 1,
    floor: float | None = None,
) -> Stratified:
    """Share trials out by Neyman's rule: a stratum gets them by weight times the deviation that the pilot saw.

    The pilot gives the counts and nothing else: its trials are no part of the estimate, so the
    estimate is unbiased however wrong the pilot was. Run the campaign with another seed than the pilot's. A pilot sees
    few events in a stratum, so its deviation is drawn towards what the same bits in all layers and all bits of the same
    layer suggest, and is never taken for 0.

    Args:
        pilot: A campaign with the same model, layers and protocol.
        trials: At all sites together, without the pilot's.
        metric: The figure that shall be precise: ``"delta_loss"`` or a rate.
        weighting: Of the layers in that figure: ``"per_layer"`` or ``"exposed"``.
        by: What makes the strata.
        channel_groups: Groups of channels if ``by`` holds ``"channel"``.
        image_groups: See :class:`~resilient_heads.campaign.design.Stratified`.
        floor: Every stratum gets at least this share of what it would get in proportion to its weight, so no trial
            counts more than ``1 / (floor * trials)`` and an event where the pilot saw none is met, and costs no more
            than that; in ``(0, 1]``. None takes the floor for which the interval is expected to be narrowest.

    Raises:
        ResultError: A metric, weighting or floor that is none, or a pilot in which the metric did not vary at all.
        DataError: Too few trials for two in each stratum.

    Source: Neyman, *On the two different aspects of the representative method*, JRSS 1934; the floor after Hesterberg,
    *Weighted average importance sampling and defensive mixture distributions*, Technometrics 1995.
    """
    if metric != "delta_loss" and metric not in RATES:
        raise ResultError(f"No metric is named {metric!r}; expected delta_loss, {', '.join(RATES)}.")
    if weighting not in WEIGHTINGS:
        raise ResultError(f"weighting must be one of {', '.join(WEIGHTINGS)}, found {weighting!r}.")
    if floor is not None and not 0 < floor <= 1:
        raise ResultError(f"floor lies above 0 and at most at 1, found {floor}.")
    values = pilot.trials.delta_loss if metric == "delta_loss" else pilot.trials.hits(metric).astype(np.float64)
    usable = np.isfinite(values)
    if len(np.unique(values[usable])) < 2:
        raise ResultError(f"The pilot saw no variation of {metric!r}; run a larger one, or a proportional design.")
    square = np.square(values[usable])
    event = math.sqrt(float(np.square(square).sum() / square.sum()))
    layers = layer_weights(pilot.sites, weighting)
    shape = Stratified(
        trials=trials,
        by=by,
        weighting=weighting,
        channel_groups=channel_groups,
        image_groups=image_groups,
        pilot_seed=pilot.config.seed,
    )
    spread, weights, widths = _spread(pilot, shape, values, usable, layers, event)
    useful = weights * spread
    useful /= useful.sum()
    least = max(2, min(_LEAST, trials // (4 * len(weights))))

    def amounts(share: float) -> Floats:
        """Neyman's shares, those below the floor lifted to it."""
        scale = 1.0
        lifted: Floats = np.maximum(useful, share * weights)
        for _ in range(40):
            scale *= max(0.0, 1 - (lifted.sum() - 1))
            lifted = np.maximum(scale * useful, share * weights)
        lifted /= lifted.sum()
        return lifted

    if floor is None:
        z = normal_quantile(DEFAULT_LEVEL)

        def width(share: float) -> float:
            """The interval's width to expect, with the weight of the event that was not seen; see ``weighted_rate``."""
            counts = np.maximum(amounts(share) * trials, least)
            variance = float((np.square(weights * spread) / counts).sum())
            unseen = event * float((weights / counts).max())
            return unseen + z * math.sqrt(variance + unseen * unseen) + z * math.sqrt(variance)

        floor = min(_FLOORS.tolist(), key=width)
    parts = np.split(amounts(floor), np.cumsum(widths)[:-1])
    return replace(shape, counts=allocate(trials, parts, [s.site.name for s in pilot.sites], least=least))


def _spread(
    pilot: CampaignResult, shape: Stratified, values: Floats, usable: NDArray[np.bool_], layers: Floats, event: float
) -> tuple[Floats, Floats, list[int]]:
    """Return deviation and weight of each stratum, layer after layer, and how many strata each layer has."""
    strata = [shape.strata(struck) for struck in pilot.sites]
    widths = [len(own) for own in strata]
    most = max(widths)
    cell = np.empty(len(values), dtype=np.int64)
    for row, own in enumerate(strata):
        struck = pilot.trials.site == row
        cell[struck] = row * most + own.of(pilot.trials.neuron[struck], pilot.trials.bit[struck])
    kinds = np.array([f"{struck.site.dtype} {width}" for struck, width in zip(pilot.sites, widths, strict=True)])
    spread = np.zeros((len(widths), most))
    moments = [part.reshape(-1, most) for part in _moments(cell[usable], values[usable], len(widths) * most)]
    for kind in np.unique(kinds):  # layers whose strata mean the same
        rows = kinds == kind
        spread[rows] = _deviations(moments[0][rows], moments[1][rows], moments[2][rows], event)
    weights = np.concatenate([weight * own.shares for weight, own in zip(layers, strata, strict=True)])
    return np.concatenate([row[:width] for row, width in zip(spread, widths, strict=True)]), weights, widths


def _deviations(counts: Floats, sums: Floats, squares: Floats, event: float) -> Floats:
    """Estimate how far values vary, ``(L, H)``, from the moments of L layers with the same H strata."""
    # Half an event more than was seen, as Jeffreys' prior has it: none seen does not mean none there.
    total = counts.sum(axis=0) + 1
    mean = (sums.sum(axis=0) + event / 2) / total
    square = (squares.sum(axis=0) + event * event / 2) / total
    # How much more or less a layer shows than its strata lead to expect.
    fragile = (squares.sum(axis=1) + event * event) / ((square * counts).sum(axis=1) + event * event)
    # A rate is lifted to a half at most, beyond which it would vary less and end above 1.
    factor = np.minimum(fragile[:, None], np.maximum(1.0, event * event / (2 * square)))
    own_mean = (sums + _PRIOR * mean * factor) / (counts + _PRIOR)
    own_square = (squares + _PRIOR * square * factor) / (counts + _PRIOR)
    spread: Floats = np.sqrt(np.maximum(own_square - own_mean * own_mean, 1e-6 * own_square))
    return spread


def _moments(cell: Codes, values: Floats, size: int) -> tuple[Floats, Floats, Floats]:
    """Return how many values each cell has, their sum and that of their squares."""
    counts, sums, squares = (
        np.bincount(cell, weights=part, minlength=size).astype(np.float64)
        for part in (np.ones_like(values), values, np.square(values))
    )
    return counts, sums, squares
