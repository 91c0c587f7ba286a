"""From a pilot campaign to the design that knows most for the same trials."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from resilient_heads.campaign.design.allocation import WEIGHTINGS, Weighting, allocate, layer_weights
from resilient_heads.campaign.design.designs import StratifiedDesign
from resilient_heads.campaign.design.perturbation_strata import CLASSES, PerturbationStrata
from resilient_heads.campaign.design.plan import SINGLE_FLIP, strata_of_trials
from resilient_heads.campaign.design.strata import By, Codes
from resilient_heads.campaign.figures.weights import weigh_trials
from resilient_heads.campaign.result.results import CampaignResult
from resilient_heads.campaign.trials.rates import RATES
from resilient_heads.errors import ArgumentError, ResultError
from resilient_heads.statistics.intervals import DEFAULT_LEVEL, Floats, normal_quantile

_LEAST = 8
"""Trials of each stratum: with fewer its variance is a guess."""
_PRIOR = 4.0
"""Trials that the other layers and strata count for in each stratum."""
_SHARE_PRIOR = 2.0
"""Trials that the other layers count for in the share that a class of changes has in a layer."""
_DOUBT = 1.05
"""By what a forecast of the width with strata of bits is multiplied before it is compared with that of changes. What
stands for events that nobody saw weighs more on many small strata, so theirs is the more pessimistic one."""
_FLOORS = np.linspace(0.1, 0.95, 35)


def neyman_design(
    pilot: CampaignResult,
    *,
    total_trials: int,
    metric: str = "sdc",
    weighting: Weighting = "layer_averaged",
    by: tuple[By, ...] | None = None,
    channel_groups: int = 4,
    image_groups: int = 1,
    floor: float | None = None,
) -> StratifiedDesign:
    """Share trials out by Neyman's rule: a stratum gets them by weight times the deviation that the pilot saw.

    The pilot gives the counts and nothing else: its trials are no part of the estimate, so the
    estimate is unbiased however wrong the pilot was. Run the campaign with another seed than the pilot's. A pilot sees
    few events in a stratum, so its deviation is drawn towards what the same bits in all layers and all bits of the same
    layer suggest, and is never taken for 0.

    Args:
        pilot: A campaign with the same model, layers and protocol.
        total_trials: Trials at all sites together, without the pilot's.
        metric: The figure that shall be precise: ``"delta_loss"`` or a rate.
        weighting: Of the layers in that figure: ``"layer_averaged"`` or ``"bit_weighted"``.
        by: What makes the strata. None takes what flips do to the values that they meet, or magnitudes of bits where
            those are expected to give the narrower interval.
        channel_groups: Groups of channels if ``by`` holds ``"channel"``.
        image_groups: See :class:`~resilient_heads.campaign.design.designs.Stratified`.
        floor: Every stratum gets at least this share of what it would get in proportion to its weight, so no trial
            counts more than ``1 / (floor * trials)`` and an event where the pilot saw none is met, and costs no more
            than that; in ``(0, 1]``. None takes the floor for which the interval is expected to be narrowest.

    Raises:
        ArgumentError: No such metric, weighting or floor; too few trials for two in each stratum.
        ResultError: A pilot in which the metric did not vary at all.

    Source: Neyman, *On the two different aspects of the representative method*, JRSS 1934; the floor after Hesterberg,
    *Weighted average importance sampling and defensive mixture distributions*, Technometrics 1995.
    """
    if metric != "delta_loss" and metric not in RATES:
        raise ArgumentError(f"No metric is named {metric!r}; expected delta_loss, {', '.join(RATES)}.")
    if weighting not in WEIGHTINGS:
        raise ArgumentError(f"weighting must be one of {', '.join(WEIGHTINGS)}, found {weighting!r}.")
    if floor is not None and not 0 < floor <= 1:
        raise ArgumentError(f"floor lies above 0 and at most at 1, found {floor}.")
    values = pilot.trials.delta_loss if metric == "delta_loss" else pilot.trials.events(metric).astype(np.float64)
    usable = np.isfinite(values)
    if len(np.unique(values[usable])) < 2:
        raise ResultError(f"The pilot saw no variation of {metric!r}; run a larger one, or a proportional design.")
    shape = StratifiedDesign(
        total_trials=total_trials,
        by=("magnitude",) if by is None or by == ("perturbation",) else by,
        weighting=weighting,
        channel_groups=channel_groups,
        image_groups=image_groups,
        pilot_seed=pilot.config.seed,
    )
    # Classes of changes are those of single flips.
    kinds: list[bool] = (
        [by == ("perturbation",)] if by is not None or pilot.config.fault != SINGLE_FLIP else [False, True]
    )
    needs = [_needs(pilot, shape, values, usable, by_perturbation=kind) for kind in kinds]
    fitting = [need for need in needs if need.smallest.sum() <= total_trials] or needs[:1]
    need, share = min(
        ((need, share) for need in fitting for share in ([floor] if floor is not None else _FLOORS.tolist())),
        key=lambda choice: choice[0].width(choice[1]) * (_DOUBT if choice[0].scales is None else 1.0),
    )
    counts = allocate(total_trials, need.parts(share), [s.site.name for s in pilot.sites], least=need.smallest)
    if need.scales is None:
        return replace(shape, counts=counts)
    # Without a detector most SDCs come from values far beyond the range, which no margin withstands.
    fragile = pilot.config.protocol.range_detector is not None
    return replace(shape, by=("perturbation",), counts=counts, scales=need.scales, fragile_images=fragile)


@dataclass(frozen=True, slots=True, eq=False)
class _Needs:
    """What the strata of all layers need, layer after layer.

    Attributes:
        trials: To be shared out.
        weights: ``(H,)``, what each stratum counts; the sum is 1.
        spread: ``(H,)``, its deviation.
        event: What an event moves a trial's value by.
        widths: Strata of each layer.
        smallest: ``(H,)``, trials that each gets in any case.
        scales: Name of a site to the unit of its changes; None where strata are made of bits.
    """

    trials: int
    weights: Floats
    spread: Floats
    event: float
    widths: list[int]
    smallest: Codes
    scales: dict[str, float] | None

    def amounts(self, floor: float) -> Floats:
        """Return Neyman's shares, those below the floor lifted to it."""
        useful = self.weights * self.spread
        useful /= useful.sum()
        scale = 1.0
        lifted: Floats = np.maximum(useful, floor * self.weights)
        for _ in range(40):
            scale *= max(0.0, 1 - (lifted.sum() - 1))
            lifted = np.maximum(scale * useful, floor * self.weights)
        lifted /= lifted.sum()
        return lifted

    def parts(self, floor: float) -> list[Floats]:
        """Return :meth:`amounts` by layer."""
        return np.split(self.amounts(floor), np.cumsum(self.widths)[:-1])

    def width(self, floor: float) -> float:
        """Return the interval's width to expect, with the weight of the event that was not seen: ``weighted_rate``."""
        z = normal_quantile(DEFAULT_LEVEL)
        counts = np.maximum(self.amounts(floor) * self.trials, self.smallest)
        variance = float((np.square(self.weights * self.spread) / counts).sum())
        unseen = self.event * float((self.weights / counts).max())
        return unseen + z * math.sqrt(variance + unseen * unseen) + z * math.sqrt(variance)


def _needs(
    pilot: CampaignResult, shape: StratifiedDesign, values: Floats, usable: NDArray[np.bool_], *, by_perturbation: bool
) -> _Needs:
    """Estimate what strata of one kind need."""
    square = np.square(values[usable])
    event = math.sqrt(float(np.square(square).sum() / square.sum()))
    layers = layer_weights(pilot.sites, shape.weighting)
    scales: dict[str, float] | None = None
    if by_perturbation:
        scales, codes, shares = _changes(pilot, layers)
        widths = [CLASSES] * len(codes)
    else:
        found = [
            strata_of_trials(shape, struck, pilot.trials.where(pilot.trials.site == row))
            for row, struck in enumerate(pilot.sites)
        ]
        codes, shares = [own for own, _ in found], [own for _, own in found]
        widths = [len(own) for own in shares]
    most = max(widths)
    cell = np.empty(len(values), dtype=np.int64)
    for row, own in enumerate(codes):
        cell[pilot.trials.site == row] = row * most + own
    moments = [part.reshape(-1, most) for part in _moments(cell[usable], values[usable], len(widths) * most)]
    spread = np.zeros((len(widths), most))
    kinds = np.array([f"{struck.site.dtype} {width}" for struck, width in zip(pilot.sites, widths, strict=True)])
    for kind in np.unique(kinds):  # layers whose strata mean the same
        rows = kinds == kind
        spread[rows] = _deviations(moments[0][rows], moments[1][rows], moments[2][rows], event)
        if by_perturbation:
            for row, own in zip(
                np.flatnonzero(rows).tolist(), _shares([shares[row] for row in np.flatnonzero(rows)]), strict=True
            ):
                shares[row] = own
    weights = np.concatenate([weight * own for weight, own in zip(layers, shares, strict=True)])
    least = max(2, min(_LEAST, shape.total_trials // (4 * len(weights))))
    return _Needs(
        trials=shape.total_trials,
        weights=weights,
        spread=np.concatenate([row[:width] for row, width in zip(spread, widths, strict=True)]),
        event=event,
        widths=widths,
        smallest=np.clip(np.ceil(weights * shape.total_trials), 2, least).astype(np.int64),
        scales=scales,
    )


def _changes(pilot: CampaignResult, layers: Floats) -> tuple[dict[str, float], list[Codes], list[Floats]]:
    """Return each site's unit of changes, the class of each of its trials, and sums of shares.

    A trial tells of one class by its flip, and of all classes by its value: what every other flip would have done.

    Returns:
        Units by site; classes, ``(N,)`` for each site; ``(1 + CLASSES,)`` for each site, the number of trials and, for
        each class, its mean share among the flips of the values that they met.
    """
    weight = weigh_trials(pilot.sites, pilot.trials, pilot.config.design, layers).weight
    if not weight.any():
        weight = np.ones(len(weight))
    scales, codes, shares = {}, list[Codes](), list[Floats]()
    for row, struck in enumerate(pilot.sites):
        own = pilot.trials.site == row
        before = pilot.trials.before[own]
        square = np.square(np.where(np.isfinite(before), before, 0.0))
        scale = math.sqrt(float(np.average(square, weights=weight[own])))
        scales[struck.site.name] = scale if 0 < scale < math.inf else 1.0
        changes = PerturbationStrata(struck, pilot.config.protocol.range_detector or "clamp", scales[struck.site.name])
        codes.append(changes.of(before, pilot.trials.after[own], pilot.trials.bit[own]))
        each = changes.fractions(torch.from_numpy(before).to(struck.site.dtype))
        shares.append(np.concatenate([[own.sum()], np.average(each, axis=0, weights=weight[own])]))
    return scales, codes, shares


def _shares(found: list[Floats]) -> Floats:
    """Return the share of each class in each layer, ``(L, CLASSES)``: drawn towards all layers', and never 0.

    Args:
        found: Of each layer, the number of trials and the mean shares that they met.
    """
    table = np.stack(found)
    counts, own = table[:, :1], table[:, 1:]
    seen = own * counts + _SHARE_PRIOR * own.mean(axis=0) + 0.5 / CLASSES
    shares: Floats = seen / seen.sum(axis=1, keepdims=True)
    return shares


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
