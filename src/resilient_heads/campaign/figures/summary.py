"""Rates and mean delta losses, with intervals, of a site, of a bit position and of a scope."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from resilient_heads.campaign.design.allocation import layer_weights
from resilient_heads.campaign.design.designs import Design, StratifiedDesign
from resilient_heads.campaign.design.fault_space import drawn_bits, fault_places, is_one_bit
from resilient_heads.campaign.figures.weights import weigh_trials
from resilient_heads.campaign.trials.columns import CampaignSite, Trials
from resilient_heads.campaign.trials.rates import DELTA_LOSS, RATES, check_metric
from resilient_heads.checks import one_of
from resilient_heads.display import as_code, columns, cut, percent, wrapped
from resilient_heads.errors import ArgumentError
from resilient_heads.injection.faults.fault_model import FaultModel
from resilient_heads.injection.formats.dtypes import BitRole, format_of
from resilient_heads.statistics.fit import fit_rate
from resilient_heads.statistics.intervals import Estimate
from resilient_heads.statistics.sample import Sample
from resilient_heads.statistics.weighted import weighted_mean, weighted_rate

METRIC_LABELS = {
    "sdc": "SDC rate",
    "due": "DUE rate",
    "tolerable": "tolerable rate",
    "masked": "masked rate",
    "sdc_5": "sdc_5 rate",
    "sdc_10": "sdc_10 rate",
    "sdc_20": "sdc_20 rate",
    "delta_loss": "mean delta loss",
}
"""The metrics as text shows them, the most important first."""
SCOPE_HEADER = ["figure", "layer-averaged", "bit-weighted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Outcome rates and mean delta loss, each with its interval; ``figures["sdc"]`` is ``figures.sdc``.

    Attributes:
        trials: Number of trials behind the figures.
        masked: Rate of trials whose logits are bit-identical; the first four rates add up to 1.
        tolerable: Rate of trials whose logits change, but not their top-1 class.
        sdc: Rate of silent data corruption.
        due: Rate of detectable errors: a logit becomes NaN or infinite, or the model raises an error.
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

    def __str__(self) -> str:
        rows = [[METRIC_LABELS[metric], str(self[metric])] for metric in METRIC_LABELS]
        return columns([["figure", f"{self.trials:,} trials, {percent(self.sdc.level)} intervals"], *rows])

    def __repr__(self) -> str:
        return f"<Figures: SDC rate {self.sdc}, DUE rate {self.due}, {self.trials:,} trials>"


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

    def __str__(self) -> str:
        size = f"{self.neurons:,} neurons, {self.figures.trials:,} trials"
        return wrapped(f"{cut(self.name, 60)}: SDC rate {self.figures.sdc}, DUE rate {self.figures.due} ({size})")

    def __repr__(self) -> str:
        return wrapped(f"<SiteSummary {cut(self.name, 60)}: SDC rate {self.figures.sdc}, DUE rate {self.figures.due}>")


@dataclass(frozen=True, slots=True, kw_only=True)
class BitSummary:
    """The rates of one bit position.

    Attributes:
        bit: Position in the word.
        role: Field of the tensor's number format to which the bit belongs; None if the fault has a format of its own.
        trials: Number of trials that acted on the bit.
        rates: Rates by name.
    """

    bit: int
    role: BitRole | None
    trials: int
    rates: dict[str, Estimate]

    def __str__(self) -> str:
        role = "" if self.role is None else f" ({self.role})"
        return (
            f"bit {self.bit}{role}: SDC rate {self.rates['sdc']}, DUE rate {self.rates['due']}, {self.trials:,} trials"
        )

    def __repr__(self) -> str:
        return f"<BitSummary {self}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopeSummary:
    """The figures of a set of sites, averaged in two ways.

    Attributes:
        name: Name of the set.
        part: What to say beside figures of the network of which the sites cover only a part, such as ``"of the covered
            part: 3 % of multiply-accumulates"``; empty otherwise.
        layers: Names of its sites.
        total_bits: Bits of one image in all of its sites, in the tensors' own number format.
        fault_bits: Bits of one image among which a trial draws one, in the number format of the fault; None if the
            campaign's fault is not one bit of one value.
        layer_averaged: Plain mean of the sites' figures, as published campaigns average.
        bit_weighted: Mean in which every place of a fault has the same weight: for a fault of one bit, the figures of a
            fault in one bit that is drawn uniformly from the set.
    """

    name: str
    part: str
    layers: tuple[str, ...]
    total_bits: int
    fault_bits: int | None
    layer_averaged: Figures
    bit_weighted: Figures

    def harmful_bits(self, metric: str = "sdc") -> Estimate:
        """Return in how many bits of one inference a fault would cause an outcome.

        Raises:
            ArgumentError: ``metric`` is not a rate, or the campaign's fault is not one bit of one value.
        """
        rate = self.bit_weighted[one_of("metric", metric, tuple(RATES))]
        if self.fault_bits is None:
            raise ArgumentError(
                "Harmful bits and FIT count bits, and a trial of this campaign does not act on one bit of one value. "
                f"Read the rate instead, {self.name}.bit_weighted.{metric}, or run a campaign with fault=FaultModel()."
            )
        return rate.scaled(self.fault_bits)

    def fit(self, metric: str = "sdc", *, raw_fit_per_megabit: float, exposed_fraction: float = 1.0) -> Estimate:
        """Return the outcome's rate of failures in 10^9 device hours (FIT); see :func:`~.statistics.fit_rate`.

        Args:
            metric: The outcome, a rate.
            raw_fit_per_megabit: Faults in 10^9 hours in 2^20 bits of the memory that holds the values.
            exposed_fraction: Fraction of the time in which a fault in the memory reaches the tensors. With the default,
                1, every bit of every tensor is in use all the time, so the FIT is an upper bound.

        Raises:
            ArgumentError: As for :meth:`harmful_bits`, or a raw rate below 0, or a fraction outside ``[0, 1]``.
        """
        bits = self.harmful_bits(metric)
        return bits.scaled(fit_rate(1.0, raw_fit_per_megabit=raw_fit_per_megabit, exposed_fraction=exposed_fraction))

    def __str__(self) -> str:
        part = f" ({self.part})" if self.part else ""
        head = f"{self.name}{part}: {len(self.layers)} sites, {self.bit_weighted.trials:,} trials"
        level = f"{percent(self.bit_weighted.sdc.level)} intervals"
        return f"{head}, {level}\n{columns([SCOPE_HEADER, *self.rows(METRIC_LABELS)])}"

    def __repr__(self) -> str:
        sdc = self.layer_averaged.sdc
        return f"<ScopeSummary {self.name}: {len(self.layers)} sites, layer-averaged SDC rate {sdc}>"

    def rows(self, metrics: Iterable[str]) -> list[list[str]]:
        """Return the cells of a table: for each metric its name and its two means, and at last the harmful bits."""
        both = self.layer_averaged, self.bit_weighted
        rows = [[METRIC_LABELS[name], *(cell(mean[name]) for mean in both)] for name in metrics]
        if self.fault_bits is not None:
            rows.append(["harmful bits (SDC)", "", cell(self.harmful_bits())])
        return rows


def cell(estimate: Estimate) -> str:
    """Return an estimate for a table on a screen: at most 29 characters, without a long reason."""
    text, colon, _ = str(estimate).partition(": ")
    return cut(f"{text})" if colon else text, 29)


def summarize_scope(
    name: str,
    sites: Sequence[CampaignSite],
    trials: Trials,
    design: Design,
    fault: FaultModel,
    *,
    level: float,
    part: str = "",
) -> ScopeSummary:
    """Summarize all the given sites together."""
    by_layer, by_bit = (
        figures(trials, weigh_trials(sites, trials, design, layer_weights(sites, weighting, fault)), level=level)
        for weighting in ("layer_averaged", "bit_weighted")
    )
    return ScopeSummary(
        name=name,
        part=part,
        layers=tuple(site.name for site in sites),
        total_bits=sum(site.total_bits for site in sites),
        fault_bits=sum(fault_places(fault, site) for site in sites) if is_one_bit(fault) else None,
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


def summarize_bits(
    sites: Sequence[CampaignSite], trials: Trials, design: Design, fault: FaultModel, *, level: float
) -> list[BitSummary]:
    """Summarize each bit position over all the given sites, with equal weights for the sites.

    Raises:
        ArgumentError: The fault is not one bit of one value.
    """
    if not is_one_bit(fault):
        raise ArgumentError(
            "by_bit() needs a fault of one bit of one value, and each trial of this campaign injects "
            f"{as_code(fault)}; read by_layer(), or run a campaign with fault=FaultModel()."
        )
    form = format_of(sites[0].site.dtype) if fault.format is None else None
    weighted = weigh_trials(sites, trials, design, layer_weights(sites, "layer_averaged", fault))
    has_bit_strata = isinstance(design, StratifiedDesign) and "bit" in design.by
    summaries = []
    for bit in drawn_bits(fault, sites[0]):
        flipped = trials.bit == bit
        domain = weighted.only(flipped, stratified=has_bit_strata)
        rates = {rate: weighted_rate(trials.events(rate)[flipped], domain, level=level) for rate in RATES}
        role = None if form is None else form.role(bit)
        summaries.append(BitSummary(bit=bit, role=role, trials=int(flipped.sum()), rates=rates))
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
