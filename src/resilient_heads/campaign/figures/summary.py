"""Rates and mean delta losses, with intervals, of a site, of a bit position and of a scope."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from resilient_heads.campaign.design.allocation import layer_weights
from resilient_heads.campaign.design.designs import Design, StratifiedDesign
from resilient_heads.campaign.figures.weights import weigh_trials
from resilient_heads.campaign.trials.columns import CampaignSite, Trials
from resilient_heads.campaign.trials.rates import DELTA_LOSS, RATES, check_metric
from resilient_heads.checks import one_of
from resilient_heads.injection.formats.dtypes import BitRole, format_of
from resilient_heads.statistics.fit import fit_rate
from resilient_heads.statistics.intervals import Estimate
from resilient_heads.statistics.sample import Sample
from resilient_heads.statistics.weighted import weighted_mean, weighted_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Outcome rates and mean delta loss, each with its interval; ``figures["sdc"]`` is ``figures.sdc``.

    Attributes:
        trials: Number of trials behind the figures.
        masked: Rate of trials whose logits are bit-identical; the first four rates add up to 1.
        tolerable: Rate of trials whose logits change, but not their top-1 class.
        sdc: Rate of silent data corruption.
        due: Rate of detectable errors: a logit is NaN or infinite.
        sdc_5: A further rate; see ``RATES``.
        sdc_10: A further rate; see ``RATES``.
        sdc_20: A further rate; see ``RATES``.
        delta_loss: Mean in nats over the trials whose loss is not NaN. It is infinite if one of the losses is.
        nan_losses: Number of trials whose loss is NaN; each of them is a DUE.
    """

    trials: int
    masked: Estimate
    tolerable: Estimate
    sdc: Estimate
    due: Estimate
    sdc_5: Estimate
    sdc_10: Estimate
    sdc_20: Estimate
    delta_loss: Estimate
    nan_losses: int

    def __getitem__(self, metric: str) -> Estimate:
        check_metric(metric)
        estimate: Estimate = getattr(self, metric)
        return estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSummary:
    """The figures of one site.

    Attributes:
        name: Name of the site.
        kind: Class of its module.
        neurons: Values of one image's part of the tensor.
        total_bits: Bits of one image's part of the tensor.
        range_limit: Largest absolute value that the range detector accepts; None without a detector.
        is_layer: Whether the module is a layer, such as a convolution or a linear layer.
        in_classifier: Whether the site belongs to the classifier.
        figures: Rates and delta loss of a fault in this site.
    """

    name: str
    kind: str
    neurons: int
    total_bits: int
    range_limit: float | None
    is_layer: bool
    in_classifier: bool
    figures: Figures


@dataclass(frozen=True, slots=True, kw_only=True)
class BitSummary:
    """The rates of one bit position.

    Attributes:
        bit: Position in the word.
        role: Field of the number format to which the bit belongs.
        trials: Number of trials that flipped the bit.
        rates: Rates by name.
    """

    bit: int
    role: BitRole
    trials: int
    rates: dict[str, Estimate]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopeSummary:
    """The figures of a set of sites, averaged in two ways.

    Attributes:
        name: Name of the set.
        part: What to say beside figures of the network of which the sites cover only a part, such as ``"of the covered
            part: 3 % of multiply-accumulates"``; empty otherwise.
        layers: Names of its sites.
        total_bits: Bits of one image in all of its sites.
        layer_averaged: Plain mean of the sites' figures, as published campaigns average.
        bit_weighted: Mean weighted by bits: the figures of a flip of one bit that is drawn uniformly from the set.
    """

    name: str
    part: str
    layers: tuple[str, ...]
    total_bits: int
    layer_averaged: Figures
    bit_weighted: Figures

    def harmful_bits(self, metric: str = "sdc") -> Estimate:
        """Return how many bits of one inference would cause an outcome if they flipped.

        Raises:
            ArgumentError: ``metric`` is not a rate.
        """
        rate = self.bit_weighted[one_of("metric", metric, tuple(RATES))]
        value, low, high = (end * self.total_bits for end in (rate.value, rate.low, rate.high))
        return Estimate(value, low, high, rate.level, rate.method)

    def fit(self, metric: str = "sdc", *, raw_fit_per_megabit: float = 1.0) -> Estimate:
        """Return the outcome's FIT rate for a raw upset rate in FIT per megabit."""
        bits = self.harmful_bits(metric)
        value, low, high = (
            fit_rate(end, raw_fit_per_megabit=raw_fit_per_megabit) for end in (bits.value, bits.low, bits.high)
        )
        return Estimate(value, low, high, bits.level, bits.method)


def summarize_scope(
    name: str, sites: Sequence[CampaignSite], trials: Trials, design: Design, *, level: float, part: str = ""
) -> ScopeSummary:
    """Summarize all the given sites together."""
    by_layer, by_bit = (
        figures(trials, weigh_trials(sites, trials, design, layer_weights(sites, weighting)), level=level)
        for weighting in ("layer_averaged", "bit_weighted")
    )
    return ScopeSummary(
        name=name,
        part=part,
        layers=tuple(site.name for site in sites),
        total_bits=sum(site.total_bits for site in sites),
        layer_averaged=by_layer,
        bit_weighted=by_bit,
    )


def summarize_layers(
    sites: Sequence[CampaignSite], trials: Trials, design: Design, *, level: float
) -> list[SiteSummary]:
    """Summarize each site by itself, in the order of execution."""
    summaries = []
    for row, site in enumerate(sites):
        at_site = trials.rows([row])
        summaries.append(
            SiteSummary(
                name=site.name,
                kind=site.site.kind,
                neurons=site.site.neurons,
                total_bits=site.total_bits,
                range_limit=site.range_limit,
                is_layer=site.site.is_layer,
                in_classifier=site.in_classifier,
                figures=figures(at_site, weigh_trials([site], at_site, design), level=level),
            )
        )
    return summaries


def summarize_bits(sites: Sequence[CampaignSite], trials: Trials, design: Design, *, level: float) -> list[BitSummary]:
    """Summarize each bit position over all the given sites, with equal weights for the sites."""
    form = format_of(sites[0].site.dtype)
    weighted = weigh_trials(sites, trials, design, layer_weights(sites, "layer_averaged"))
    has_bit_strata = isinstance(design, StratifiedDesign) and "bit" in design.by
    summaries = []
    for bit in range(form.word_bits):
        flipped = trials.bit == bit
        domain = weighted.only(flipped, stratified=has_bit_strata)
        rates = {rate: weighted_rate(trials.events(rate)[flipped], domain, level=level) for rate in RATES}
        summaries.append(BitSummary(bit=bit, role=form.role(bit), trials=int(flipped.sum()), rates=rates))
    return summaries


def figures(trials: Trials, weighted: Sample, *, level: float) -> Figures:
    """Return rates and mean delta loss of weighted trials."""
    return Figures(
        trials=len(trials),
        delta_loss=estimate(trials, weighted, DELTA_LOSS, level),
        nan_losses=int(np.isnan(trials.delta_loss).sum()),
        **{rate: estimate(trials, weighted, rate, level) for rate in RATES},
    )


def estimate(trials: Trials, weighted: Sample, metric: str, level: float) -> Estimate:
    """Return one metric of weighted trials."""
    if metric == DELTA_LOSS:
        return weighted_mean(trials.delta_loss, weighted, level=level)
    return weighted_rate(trials.events(metric), weighted, level=level)
