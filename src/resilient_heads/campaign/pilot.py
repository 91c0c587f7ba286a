"""From a pilot campaign to the design that knows most for the same trials."""

from dataclasses import dataclass

import numpy as np

from resilient_heads.campaign.design import WEIGHTINGS, Stratified, Weighting, allocate, layer_weights
from resilient_heads.campaign.results import CampaignResult
from resilient_heads.campaign.strata import By, Codes
from resilient_heads.campaign.trials import RATES
from resilient_heads.errors import ResultError
from resilient_heads.metrics.intervals import Floats

_PRIOR = 4.0


def neyman(
    pilot: CampaignResult,
    *,
    trials: int,
    metric: str = "sdc",
    weighting: Weighting = "per_layer",
    by: tuple[By, ...] = ("bit",),
    channel_groups: int = 4,
    image_groups: int | None = None,
    floor: float = 0.5,
) -> Stratified:
    """Share trials out by Neyman's rule: a stratum gets them by weight times the deviation that the pilot saw.

    The pilot gives the counts and nothing else: its trials are no part of the estimate, so the estimate is unbiased
    however wrong the pilot was. Run the campaign with another seed than the pilot's. A pilot sees few trials of each
    stratum, so a stratum's rate is drawn towards that of the same stratum in all layers; and each stratum gets at least
    ``floor`` of what it would get in proportion to its weight, so that one in which the pilot saw no event can neither
    hide one nor cost more than ``1 / floor`` times the variance of proportional shares.

    Args:
        pilot: A campaign with the same model, layers and protocol.
        trials: At all sites together, without the pilot's.
        metric: The figure that shall be precise: ``"delta_loss"`` or a rate.
        weighting: Of the layers in that figure: ``"per_layer"`` or ``"exposed"``.
        by: What makes the strata.
        channel_groups: Groups of channels if ``by`` holds ``"channel"``.
        image_groups: See :class:`~resilient_heads.campaign.design.Stratified`; None gives every site its own images.
        floor: Share of the trials that goes out in proportion, in ``(0, 1]``.

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
    if not 0 < floor <= 1:
        raise ResultError(f"floor lies above 0 and at most at 1, found {floor}.")
    shape = Stratified(
        trials=trials,
        by=by,
        weighting=weighting,
        channel_groups=channel_groups,
        image_groups=len(pilot.sites) if image_groups is None else image_groups,
        pilot_seed=pilot.config.seed,
    )
    cells = _cells(pilot, shape, metric)
    layers = layer_weights(pilot.sites, weighting)
    weights = layers[cells.layer] * cells.share
    useful = weights * cells.deviation
    if not useful.sum() > 0:
        raise ResultError(f"The pilot saw no variation of {metric!r}; run a larger one, or a proportional design.")
    amounts = (1 - floor) * useful / useful.sum() + floor * weights
    parts = [amounts[cells.layer == row] for row in range(len(pilot.sites))]
    counts = allocate(trials, parts, [struck.site.name for struck in pilot.sites])
    return Stratified(
        trials=trials,
        by=by,
        weighting=weighting,
        channel_groups=channel_groups,
        image_groups=shape.image_groups,
        counts=counts,
        pilot_seed=shape.pilot_seed,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Cells:
    """All strata of all layers, one after another.

    Attributes:
        layer: ``(C,)``.
        share: ``(C,)``, of its layer.
        deviation: ``(C,)``, standard deviation of a trial's value.
    """

    layer: Codes
    share: Floats
    deviation: Floats


def _cells(pilot: CampaignResult, design: Stratified, metric: str) -> _Cells:
    """Estimate how far values vary in each stratum, drawn towards the same stratum in all layers."""
    trials = pilot.trials
    values = trials.delta_loss if metric == "delta_loss" else trials.hits(metric).astype(np.float64)
    strata = [design.strata(struck) for struck in pilot.sites]
    widths = [len(own) for own in strata]
    starts = np.cumsum([0, *widths])
    code = np.empty(len(trials), dtype=np.int64)
    for row, own in enumerate(strata):
        struck = trials.site == row
        code[struck] = own.of(trials.neuron[struck], trials.bit[struck])
    usable = np.isfinite(values)
    cell = starts[trials.site] + code
    kind = np.concatenate([np.arange(width) for width in widths])

    def moments(groups: Codes, size: int) -> tuple[Floats, Floats, Floats]:
        counts = np.bincount(groups[usable], minlength=size)
        sums = np.bincount(groups[usable], weights=values[usable], minlength=size)
        squares = np.bincount(groups[usable], weights=np.square(values[usable]), minlength=size)
        return counts.astype(np.float64), sums.astype(np.float64), squares.astype(np.float64)

    total, total_sum, total_square = moments(code, int(kind.max()) + 1)
    own_count, own_sum, own_square = moments(cell, int(starts[-1]))
    with np.errstate(invalid="ignore", divide="ignore"):
        prior_mean = np.nan_to_num(total_sum / total)[kind]
        prior_square = np.nan_to_num(total_square / total)[kind]
    mean = (own_sum + _PRIOR * prior_mean) / (own_count + _PRIOR)
    square = (own_square + _PRIOR * prior_square) / (own_count + _PRIOR)
    return _Cells(
        layer=np.repeat(np.arange(len(widths)), widths),
        share=np.concatenate([own.shares for own in strata]),
        deviation=np.sqrt(np.maximum(square - mean * mean, 0.0)),
    )
