"""Compare two campaigns on the same images: how much better is one model than the other?"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from resilient_heads.campaign.analysis.comparable import differences_to_name, require_comparable
from resilient_heads.campaign.analysis.comparison import (
    COMPARED_RATES,
    HARMFUL_BITS,
    METRICS,
    Comparison,
    Improvement,
    LayerDifference,
)
from resilient_heads.campaign.design.allocation import WEIGHTINGS, Weighting, layer_weights
from resilient_heads.campaign.figures.scopes import SCOPES
from resilient_heads.campaign.figures.weights import weigh_trials
from resilient_heads.campaign.result.results import CampaignResult
from resilient_heads.campaign.result.summary import Summary
from resilient_heads.errors import ResultError
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

_LEAST_P, _MOST_P = 1e-12, 1 - 1e-9


def compare(baseline: CampaignResult, candidate: CampaignResult, *, level: float = DEFAULT_LEVEL) -> Comparison:
    """Compare two campaigns that used the same images, the same protocol and the same fault model.

    Ratios and differences of delta losses are paired: the bootstrap resamples the same images for both models, so what
    makes an image fragile in both cancels. Ratios and differences of rates are computed from the intervals of the two
    rates. That is valid even if a model showed no event, and conservative if both models fail on the same images. The
    campaigns may have different designs and different numbers of trials.

    Models with different sites, such as one with and one without a protection, are compared by harmful bits, because
    a mean over other sites is another figure. Sites of the same name are also compared by their rates; Holm's
    correction decides which of them differ.

    Raises:
        ArgumentError: An argument is no result.
        ResultError: The campaigns have different images, protocols, fault models or calibration images, or no scope in
            common; or one is a shard.

    .. code-block:: python

        verdict = rh.compare(baseline=plain_result, candidate=text_guided_result)
        print(verdict)
        verdict.improvement("network", "sdc").ratio  # above 1: the candidate is better
        verdict.differing("sdc")  # layers whose SDC rates differ
    """
    require_comparable(baseline, candidate)
    first, second = baseline.summary(level=level), candidate.summary(level=level)
    improvements = [
        improvement
        for scope in first.scopes
        if scope in second.scopes
        for improvement in _scope_improvements(baseline, candidate, first, second, scope)
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
        layers=tuple(found for metric in COMPARED_RATES for found in _layers(baseline, candidate, metric, level)),
        notes=differences_to_name(baseline, candidate),
    )


def _scope_improvements(
    baseline: CampaignResult, candidate: CampaignResult, first: Summary, second: Summary, scope: str
) -> list[Improvement]:
    """Compare every figure of one scope."""
    note = _other_sites(scope, baseline, candidate)
    found = [
        _improvement(baseline, candidate, first, second, scope, weighting, metric, note)
        for weighting in WEIGHTINGS
        for metric in METRICS
    ]
    if first.scopes[scope].fault_bits is None:
        return found
    for metric in COMPARED_RATES:
        before, after = (summary.scopes[scope].harmful_bits(metric) for summary in (first, second))
        found.append(
            Improvement(
                scope=scope,
                weighting=HARMFUL_BITS,
                metric=metric,
                baseline=before,
                candidate=after,
                ratio=ratio_of_rates(before, after),
                difference=difference_of_rates(before, after),
                note=note,
            )
        )
    return found


def _other_sites(scope: str, baseline: CampaignResult, candidate: CampaignResult) -> str:
    """Return a note if two campaigns have different sites in a scope."""
    first, second = (
        {site.name: (site.site.neurons, site.site.word_bits) for site in scope_sites}
        for scope_sites in (
            [result.sites[row] for row in SCOPES[scope].rows(result.sites)] for result in (baseline, candidate)
        )
    )
    if first == second:
        return ""
    before, after = (f"{len(sites)} ({sum(n for n, _ in sites.values()):,} values)" for sites in (first, second))
    return (
        f"Sites of the scope {scope!r}: {before} in the baseline, {after} in the candidate. Its means are over "
        "different sites; compare harmful bits, or FIT."
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
    note: str,
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
        note=note,
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
    weighted = weigh_trials(sites, trials, result.config.design, layer_weights(sites, weighting, result.config.fault))
    errors: Floats = np.zeros(len(images))
    position = np.searchsorted(images, trials.image)
    np.add.at(errors, position, influence(weighted, values).parts)
    return errors


def _gain(baseline: NDArray[np.generic], candidate: NDArray[np.generic], level: float) -> Estimate:
    """Return the mean paired difference over images."""
    difference = candidate.astype(np.float64) - baseline.astype(np.float64)
    return mean_interval(difference, level=level)
