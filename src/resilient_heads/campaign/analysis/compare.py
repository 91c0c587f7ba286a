"""Compare two campaigns on the same images: how much better is one model than the other?"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resilient_heads.campaign.design.allocation import WEIGHTINGS, Weighting, layer_weights
from resilient_heads.campaign.figures.scopes import SCOPES
from resilient_heads.campaign.figures.weights import weigh_trials
from resilient_heads.campaign.result.results import CampaignResult, Summary
from resilient_heads.checks import instance_of
from resilient_heads.errors import ArgumentError, ResultError
from resilient_heads.statistics.intervals import (
    DEFAULT_LEVEL,
    Estimate,
    Floats,
    difference_of_rates,
    mean_interval,
    ratio_of_rates,
)
from resilient_heads.statistics.paired import paired_difference, paired_ratio
from resilient_heads.statistics.planning import holm
from resilient_heads.statistics.sample import influence
from resilient_heads.statistics.weighted import rate_intervals

METRICS = ("delta_loss", "sdc", "due")
_RATES = ("sdc", "due")
_LEAST_P, _MOST_P = 1e-12, 1 - 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Improvement:
    """One figure of a baseline and of a candidate.

    Attributes:
        scope: Name of a set of sites in :data:`~resilient_heads.campaign.figures.scopes.SCOPES`.
        weighting: ``"layer_averaged"`` (plain mean of the layers) or ``"bit_weighted"`` (weighted by bits).
        metric: ``"delta_loss"``, ``"sdc"`` or ``"due"``.
        baseline: Figure of the baseline.
        candidate: Figure of the candidate.
        ratio: Baseline divided by candidate. Above 1, the candidate is better.
        difference: Baseline minus candidate. Above 0, the candidate is better.
    """

    scope: str
    weighting: str
    metric: str
    baseline: Estimate
    candidate: Estimate
    ratio: Estimate
    difference: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDifference:
    """One rate of one site in two campaigns.

    Attributes:
        layer: Name of the site.
        metric: ``"sdc"`` or ``"due"``.
        baseline: Rate of the baseline.
        candidate: Rate of the candidate.
        difference: Baseline minus candidate, without correction for the number of sites.
        p_value: Smallest tail probability at which the interval of the difference excludes 0.
        adjusted: The p-value with Holm's correction for the number of sites.
        differs: Whether ``adjusted`` is at most 1 minus the level of the comparison.
    """

    layer: str
    metric: str
    baseline: Estimate
    candidate: Estimate
    difference: Estimate
    p_value: float
    adjusted: float
    differs: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A candidate against a baseline, under one protocol.

    Attributes:
        baseline: Summary of the baseline.
        candidate: Summary of the candidate.
        accuracy_gain: Accuracy of the candidate minus that of the baseline, from -1 to 1; paired by image.
        top2diff_gain: Mean Top2Diff of the candidate minus that of the baseline; paired by image.
        improvements: Every figure of every scope that both campaigns cover.
        layers: SDC and DUE rates of every site that both campaigns have, in the order of the baseline.
    """

    baseline: Summary
    candidate: Summary
    accuracy_gain: Estimate
    top2diff_gain: Estimate
    improvements: tuple[Improvement, ...]
    layers: tuple[LayerDifference, ...]

    def differing(self, metric: str = "sdc") -> tuple[LayerDifference, ...]:
        """Return the layers whose rates differ. With the confidence level, none of them is a false discovery.

        Raises:
            ArgumentError: ``metric`` is not a rate by which layers are compared.
        """
        if metric not in _RATES:
            raise ArgumentError(f"Layers are compared by {' and '.join(_RATES)}, found {metric!r}.")
        return tuple(found for found in self.layers if found.metric == metric and found.differs)

    def improvement(self, scope: str, metric: str, *, weighting: str = "layer_averaged") -> Improvement:
        """Return one of :attr:`improvements`.

        Raises:
            ArgumentError: There is none of that kind.
        """
        for found in self.improvements:
            if (found.scope, found.metric, found.weighting) == (scope, metric, weighting):
                return found
        kinds = sorted({(i.scope, i.metric, i.weighting) for i in self.improvements})
        raise ArgumentError(f"No improvement is known for {(scope, metric, weighting)}; expected one of {kinds}.")


def compare(baseline: CampaignResult, candidate: CampaignResult, *, level: float = DEFAULT_LEVEL) -> Comparison:
    """Compare two campaigns that used the same images and the same protocol.

    Ratios and differences of delta losses are paired: the bootstrap resamples the same images for both models, so what
    makes an image fragile in both cancels. Ratios and differences of rates are computed from the intervals of the two
    rates. That is valid even if a model showed no event, and conservative if both models fail on the same images. The
    campaigns may have different designs and different numbers of trials.

    Sites of the same name are also compared by their rates; Holm's correction decides which of them differ.

    Raises:
        ArgumentError: An argument is no result.
        ResultError: The campaigns have different images, protocols or calibration images, or no scope in common.

    .. code-block:: python

        verdict = rh.compare(baseline=plain_result, candidate=text_guided_result)
        verdict.improvement("network", "sdc").ratio  # above 1: the candidate is better
        verdict.differing("sdc")  # layers whose SDC rates differ
    """
    for name, result in (("baseline", baseline), ("candidate", candidate)):
        instance_of(name, result, CampaignResult, example='rh.CampaignResult.load("folder")')
    if baseline.record.data_sha256 != candidate.record.data_sha256:
        raise ResultError("The two campaigns used different images; run both on the same data, in the same order.")
    if baseline.config.protocol != candidate.config.protocol:
        raise ResultError(
            f"The two campaigns follow different protocols ({baseline.config.protocol.name} and "
            f"{candidate.config.protocol.name}); compare campaigns of one protocol."
        )
    if baseline.record.calibration_sha256 != candidate.record.calibration_sha256:
        raise ResultError(
            "The two campaigns took their ranges from different images; calibrate both on the same data, in the same "
            "order."
        )
    first, second = baseline.summary(level=level), candidate.summary(level=level)
    improvements = [
        _improvement(baseline, candidate, first, second, scope, weighting, metric)
        for scope in first.scopes
        if scope in second.scopes
        for weighting in WEIGHTINGS
        for metric in METRICS
    ]
    if not improvements:
        raise ResultError(
            "The two campaigns have figures for no scope in common: the baseline for "
            f"{', '.join(first.scopes) or 'no scope'}, the candidate for {', '.join(second.scopes) or 'no scope'}. Run "
            'both without layers=, or with all tensors of the classifier: layers=["fc", "fc.*"] for a head at "fc".'
        )
    return Comparison(
        baseline=first,
        candidate=second,
        accuracy_gain=_gain(baseline.golden.correct, candidate.golden.correct, level),
        top2diff_gain=_gain(baseline.golden.top2diff, candidate.golden.top2diff, level),
        improvements=tuple(improvements),
        layers=tuple(found for metric in _RATES for found in _layers(baseline, candidate, metric, level)),
    )


def _layers(baseline: CampaignResult, candidate: CampaignResult, metric: str, level: float) -> list[LayerDifference]:
    """Compare one rate of each site that both campaigns have."""
    first, second = (
        {site.site.name: (row, site) for row, site in enumerate(result.sites)} for result in (baseline, candidate)
    )
    names = [name for name in first if name in second]
    rates = []
    for name in names:
        pair = []
        for result, (row, site) in ((baseline, first[name]), (candidate, second[name])):
            trials = result.trials.rows([row])
            weighted = weigh_trials([site], trials, result.config.design, np.ones(1))
            pair.append(rate_intervals(trials.events(metric), weighted))
        rates.append(pair)
    p_values = [difference_p_value(*pair) for pair in rates]
    return [
        LayerDifference(
            layer=name,
            metric=metric,
            baseline=pair[0](level),
            candidate=pair[1](level),
            difference=difference_of_rates(pair[0](level), pair[1](level)),
            p_value=p_value,
            adjusted=adjusted,
            differs=adjusted <= 1 - level,
        )
        for name, pair, p_value, adjusted in zip(names, rates, p_values, holm(p_values), strict=True)
    ]


def difference_p_value(first: Callable[[float], Estimate], second: Callable[[float], Estimate]) -> float:
    """Return the smallest tail probability at which the interval of a difference leaves out 0; 1e-12 at least."""
    if math.isnan(first(DEFAULT_LEVEL).value - second(DEFAULT_LEVEL).value):
        return 1.0

    def apart(tail: float) -> bool:
        return 0.0 not in difference_of_rates(first(1 - tail), second(1 - tail))

    low, high = math.log(_LEAST_P), 0.0
    if apart(_LEAST_P):
        return _LEAST_P
    if not apart(_MOST_P):
        return 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if apart(min(math.exp(middle), _MOST_P)) else (middle, high)
    return math.exp(high)


def _improvement(
    baseline: CampaignResult,
    candidate: CampaignResult,
    first: Summary,
    second: Summary,
    scope: str,
    weighting: Weighting,
    metric: str,
) -> Improvement:
    """Compare one figure."""
    before, after = (getattr(summary.scopes[scope], weighting)[metric] for summary in (first, second))
    images = np.union1d(baseline.trials.image, candidate.trials.image)
    errors = [_image_errors(result, scope, weighting, metric, images) for result in (baseline, candidate)]
    ratio = paired_ratio(before.value, after.value, *errors, level=first.level)
    difference = paired_difference(before.value, after.value, *errors, level=first.level)
    if metric != "delta_loss":
        ratio = ratio_of_rates(before, after)
        difference = difference_of_rates(before, after)
    return Improvement(
        scope=scope,
        weighting=weighting,
        metric=metric,
        baseline=before,
        candidate=after,
        ratio=ratio,
        difference=difference,
    )


def _image_errors(
    result: CampaignResult, scope: str, weighting: Weighting, metric: str, images: NDArray[np.int64]
) -> Floats:
    """Return each image's part of the error of a figure, ``(I,)``; NaN where a loss is infinite."""
    rows = SCOPES[scope].rows(result.sites)
    sites, trials = [result.sites[row] for row in rows], result.trials.rows(rows)
    values = trials.delta_loss if metric == "delta_loss" else trials.events(metric).astype(np.float64)
    if np.isinf(values).any():
        return np.full(len(images), np.nan)
    weighted = weigh_trials(sites, trials, result.config.design, layer_weights(sites, weighting))
    errors: Floats = np.zeros(len(images))
    position = np.searchsorted(images, trials.image)
    np.add.at(errors, position, influence(weighted, values).parts)
    return errors


def _gain(baseline: NDArray[np.generic], candidate: NDArray[np.generic], level: float) -> Estimate:
    """Return the mean paired difference over images."""
    difference = candidate.astype(np.float64) - baseline.astype(np.float64)
    return mean_interval(difference, level=level)
