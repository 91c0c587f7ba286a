"""What the trials add up to: by layer, by bit, and over the network."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from resilient_heads.campaign.design.allocation import layer_weights
from resilient_heads.campaign.design.designs import Design, StratifiedDesign
from resilient_heads.campaign.design.plan import strata_of_trials
from resilient_heads.campaign.trials.columns import RATES, CampaignSite, Trials
from resilient_heads.errors import ArgumentError
from resilient_heads.injection.formats.dtypes import BitRole, format_of
from resilient_heads.statistics.fit import fit_rate
from resilient_heads.statistics.intervals import Estimate, Floats
from resilient_heads.statistics.sample import Sample
from resilient_heads.statistics.weighted import weighted_mean, weighted_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Outcome rates and mean delta loss, each with its interval.

    Attributes:
        trials: Number of trials behind them.
        masked, tolerable, sdc, due: Rates of the four outcomes; the values add up to 1.
        sdc_5, sdc_10, sdc_20: Further rates; ``RATES`` says what each counts.
        delta_loss: Mean in nats over trials whose loss is not NaN; infinite losses make it infinite.
        nan_losses: Trials left out of ``delta_loss`` because their loss is NaN. They are DUEs.
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
        if metric not in (*RATES, "delta_loss"):
            raise ArgumentError(f"No figure is named {metric!r}; expected delta_loss, {', '.join(RATES)}.")
        estimate: Estimate = getattr(self, metric)
        return estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSummary:
    """One site.

    Attributes:
        name: Of the site.
        kind: Class of its module.
        neurons: Values of one sample.
        total_bits: Bits of one sample: neurons times word width.
        range_limit: Range of the detector, or None.
        is_layer: Whether it is a Conv2d or Linear.
        in_classifier: Whether it belongs to the classifier.
        figures: Rates and delta loss per fault in this site.
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
    """One bit position, over the layers asked for.

    Attributes:
        bit: Position in the word.
        role: The field it belongs to.
        trials: Trials that flipped it.
        rates: Outcome to rate.
    """

    bit: int
    role: BitRole
    trials: int
    rates: dict[str, Estimate]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """A set of sites taken together, in two ways.

    Attributes:
        name: What the set is.
        layers: Names of its sites.
        total_bits: Bits of one sample in all of them.
        layer_averaged: Plain mean of the sites' figures, as published campaigns average.
        exposed: Mean weighted by bits: the figures of one flip that strikes any bit of the set alike.
    """

    name: str
    layers: tuple[str, ...]
    total_bits: int
    layer_averaged: Figures
    bit_weighted: Figures

    def harmful_bits(self, metric: str = "sdc") -> Estimate:
        """Return how many of the set's bits, per inference, would end in an outcome if they flipped.

        Raises:
            ArgumentError: ``metric`` is no rate.
        """
        if metric not in RATES:
            raise ArgumentError(f"Bits are counted by a rate: {', '.join(RATES)}; found {metric!r}.")
        rate = self.bit_weighted[metric]
        return Estimate(
            rate.value * self.total_bits,
            rate.low * self.total_bits,
            rate.high * self.total_bits,
            rate.level,
            rate.method,
        )

    def fit(self, metric: str = "sdc", *, raw_fit_per_megabit: float = 1.0) -> Estimate:
        """Return the FIT rate that the outcome contributes for a given raw upset rate."""
        bits = self.harmful_bits(metric)
        value, low, high = (
            fit_rate(end, raw_fit_per_megabit=raw_fit_per_megabit) for end in (bits.value, bits.low, bits.high)
        )
        return Estimate(value, low, high, bits.level, bits.method)


SCOPES = {
    "last": "last layer(s): the Conv2d and Linear outputs of the classifier",
    "last_all": "every tensor of the classifier, also between and behind its layers",
    "network": "all Conv2d and Linear outputs",
    "network_all": "all Conv2d and Linear outputs and every tensor of the classifier",
}
"""The sets of sites that a summary reports."""


def scope_rows(sites: Sequence[CampaignSite], scope: str) -> list[int]:
    """Return the positions of a scope's sites."""
    return [
        row
        for row, struck in enumerate(sites)
        if (struck.in_classifier or scope.startswith("network")) and (struck.site.is_layer or scope.endswith("_all"))
    ]


def summarize_scope(name: str, sites: Sequence[CampaignSite], trials: Trials, design: Design, *, level: float) -> Scope:
    """Summarize all the given sites together."""
    return Scope(
        name=name,
        layers=tuple(struck.site.name for struck in sites),
        total_bits=sum(struck.site.neurons * struck.site.word_bits for struck in sites),
        layer_averaged=figures(
            trials, weigh_trials(sites, trials, design, layer_weights(sites, "layer_averaged")), level=level
        ),
        bit_weighted=figures(
            trials, weigh_trials(sites, trials, design, layer_weights(sites, "bit_weighted")), level=level
        ),
    )


def summarize_layers(
    sites: Sequence[CampaignSite], trials: Trials, design: Design, *, level: float
) -> list[SiteSummary]:
    """Summarize each site by itself, in the order of execution."""
    summaries = []
    for row, struck in enumerate(sites):
        own = trials.rows([row])
        summaries.append(
            SiteSummary(
                name=struck.site.name,
                kind=struck.site.kind,
                neurons=struck.site.neurons,
                total_bits=struck.site.neurons * struck.site.word_bits,
                range_limit=struck.range_limit,
                is_layer=struck.site.is_layer,
                in_classifier=struck.in_classifier,
                figures=figures(own, weigh_trials([struck], own, design, np.ones(1)), level=level),
            )
        )
    return summaries


def summarize_bits(sites: Sequence[CampaignSite], trials: Trials, design: Design, *, level: float) -> list[BitSummary]:
    """Summarize each bit position over all the given sites, which count alike."""
    form = format_of(sites[0].site.dtype)
    whole = weigh_trials(sites, trials, design, layer_weights(sites, "layer_averaged"))
    summaries = []
    for bit in range(form.word_bits):
        struck = trials.bit == bit
        own = whole.only(struck, stratified=isinstance(design, StratifiedDesign) and "bit" in design.by)
        rates = {metric: weighted_rate(trials.events(metric)[struck], own, level=level) for metric in RATES}
        summaries.append(BitSummary(bit=bit, role=form.role(bit), trials=int(struck.sum()), rates=rates))
    return summaries


def figures(trials: Trials, weighted: Sample, *, level: float) -> Figures:
    """Return rates and mean delta loss of weighted trials."""
    rates = {metric: estimate(trials, weighted, metric, level) for metric in RATES}
    return Figures(
        trials=len(trials),
        delta_loss=estimate(trials, weighted, "delta_loss", level),
        nan_losses=int(np.isnan(trials.delta_loss).sum()),
        **rates,
    )


def estimate(trials: Trials, weighted: Sample, metric: str, level: float) -> Estimate:
    """Return one figure of weighted trials: ``"delta_loss"`` or a rate."""
    if metric == "delta_loss":
        return weighted_mean(trials.delta_loss, weighted, level=level)
    return weighted_rate(trials.events(metric), weighted, level=level)


def weigh_trials(sites: Sequence[CampaignSite], trials: Trials, design: Design, layers: Floats) -> Sample:
    """Give each trial its weight: what its stratum counts, divided by the trials that were run in it.

    Args:
        sites: The L sites, by which ``trials.site`` counts.
        trials: N trials; any first part of a campaign's.
        design: How they were drawn.
        layers: ``(L,)``, what each site counts; the sum is 1.

    Returns:
        The N trials with their weights. While a stratum has no trial yet nothing is known of the whole, and the
        weights are 0.
    """
    stratum, weights = np.zeros(len(trials), dtype=np.int64), []
    start = 0
    for row, struck in enumerate(sites):
        chosen = trials.site == row
        codes, shares = strata_of_trials(design, struck, trials.where(chosen))
        stratum[chosen] = start + codes
        weights.append(layers[row] * shares)
        start += len(shares)
    counts = np.bincount(stratum, minlength=start)
    weight = (np.concatenate(weights) / np.maximum(counts, 1))[stratum]
    if isinstance(design, StratifiedDesign) and design.by_perturbation:
        weight *= trials.weight
        found = np.bincount(trials.site, weights=weight, minlength=len(sites))
        weight *= np.divide(layers, found, out=np.zeros(len(sites)), where=found > 0)[trials.site]
        counts = np.where((found > 0).all(), counts, 0)
    if (counts == 0).any():
        weight[:] = 0.0
    return Sample(
        weight=weight,
        site=trials.site.astype(np.int64),
        stratum=stratum,
        image=trials.image,
        image_draw=trials.image * (int(trials.trial.max(initial=0)) + 1) + trials.trial,
    )
