"""What the trials add up to: by layer, by bit, and over the network."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from resilient_heads.campaign.trials import RATES, StruckSite, Trials
from resilient_heads.errors import ResultError
from resilient_heads.injection.formats import BitRole, format_of
from resilient_heads.metrics.fit import fit_rate
from resilient_heads.metrics.intervals import Estimate, Floats, bootstrap, weighted_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Outcome rates and mean delta loss, each with its interval.

    Attributes:
        trials: Number of trials behind them.
        masked, tolerable, sdc, due: Rates of the four outcomes; the values add up to 1.
        sdc_5, sdc_10, sdc_20: Further rates; :data:`~resilient_heads.campaign.trials.RATES` says what each counts.
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
            raise ResultError(f"No figure is named {metric!r}; expected delta_loss, {', '.join(RATES)}.")
        estimate: Estimate = getattr(self, metric)
        return estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSummary:
    """One site.

    Attributes:
        name: Of the site.
        kind: Class of its module.
        neurons: Values of one sample.
        bits: Bits of one sample: neurons times word width.
        limit: Range of the detector, or None.
        is_layer: Whether it is a Conv2d or Linear.
        is_last: Whether it belongs to the classifier.
        figures: Rates and delta loss per fault in this site.
    """

    name: str
    kind: str
    neurons: int
    bits: int
    limit: float | None
    is_layer: bool
    is_last: bool
    figures: Figures


@dataclass(frozen=True, slots=True, kw_only=True)
class BitSummary:
    """One bit position, over the layers asked for.

    Attributes:
        bit: Position in the word.
        role: The field it belongs to.
        trials: Trials that flipped it.
        rates: Outcome to rate; Wilson intervals.
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
        bits: Bits of one sample in all of them.
        per_layer: Plain mean of the sites' figures, as published campaigns average.
        exposed: Mean weighted by bits: the figures of one flip that strikes any bit of the set alike.
    """

    name: str
    layers: tuple[str, ...]
    bits: int
    per_layer: Figures
    exposed: Figures

    def harmful_bits(self, metric: str = "sdc") -> Estimate:
        """Return how many of the set's bits, per inference, would end in an outcome if they flipped.

        Raises:
            ResultError: ``metric`` is no rate.
        """
        if metric not in RATES:
            raise ResultError(f"Bits are counted by a rate: {', '.join(RATES)}; found {metric!r}.")
        rate = self.exposed[metric]
        return Estimate(rate.value * self.bits, rate.low * self.bits, rate.high * self.bits, rate.level, rate.method)

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


def scope_rows(sites: Sequence[StruckSite], scope: str) -> list[int]:
    """Return the positions of a scope's sites."""
    return [
        row
        for row, struck in enumerate(sites)
        if (struck.is_last or scope.startswith("network")) and (struck.site.is_layer or scope.endswith("_all"))
    ]


def exposure(sites: Sequence[StruckSite]) -> Floats:
    """Return each site's share of the bits, ``(L,)``."""
    bits: Floats = np.array([struck.site.neurons * struck.site.bits for struck in sites], dtype=np.float64)
    bits /= bits.sum()
    return bits


def summarize_scope(name: str, sites: Sequence[StruckSite], trials: Trials, *, level: float) -> Scope:
    """Summarize all the given sites together."""
    equal = np.full(len(sites), 1 / len(sites))
    return Scope(
        name=name,
        layers=tuple(struck.site.name for struck in sites),
        bits=sum(struck.site.neurons * struck.site.bits for struck in sites),
        per_layer=figures(trials, equal, level=level),
        exposed=figures(trials, exposure(sites), level=level),
    )


def summarize_layers(sites: Sequence[StruckSite], trials: Trials, *, level: float) -> list[LayerSummary]:
    """Summarize each site by itself, in the order of execution."""
    return [
        LayerSummary(
            name=struck.site.name,
            kind=struck.site.kind,
            neurons=struck.site.neurons,
            bits=struck.site.neurons * struck.site.bits,
            limit=struck.limit,
            is_layer=struck.site.is_layer,
            is_last=struck.is_last,
            figures=figures(trials.rows([row]), np.ones(1), level=level),
        )
        for row, struck in enumerate(sites)
    ]


def summarize_bits(sites: Sequence[StruckSite], trials: Trials, *, level: float) -> list[BitSummary]:
    """Summarize each bit position over all the given sites; every trial counts alike."""
    form = format_of(sites[0].site.dtype)
    summaries = []
    for bit in range(form.bits):
        struck = trials.bit == bit
        rates = {
            metric: weighted_rate(
                trials.hits(metric)[struck][None], np.ones(1), image=trials.image[struck], level=level
            )
            for metric in RATES
        }
        summaries.append(BitSummary(bit=bit, role=form.role(bit), trials=int(struck.sum()), rates=rates))
    return summaries


def figures(trials: Trials, weights: Floats, *, level: float) -> Figures:
    """Return rates and mean delta loss of L layers with these weights, ``(L,)``, whose sum is 1."""
    rates = {
        metric: weighted_rate(
            trials.hits(metric).reshape(len(weights), -1),
            weights,
            image=trials.image.reshape(len(weights), -1)[0],
            level=level,
        )
        for metric in RATES
    }
    struck = np.unique(trials.image)
    table = trials.image.reshape(len(weights), -1)
    sums = image_sums(trials.delta_loss.reshape(table.shape), table, struck)
    loss = bootstrap(lambda counts: sums.mean(counts, weights), len(struck), level=level)
    if loss.low == loss.high and math.isfinite(loss.low):
        # All resamples agree, as when no trial changed a loss: other images may differ, nobody knows how far.
        loss = replace(loss, high=math.nan)
    return Figures(
        trials=trials.outcome.size,
        delta_loss=loss,
        nan_losses=int(np.isnan(trials.delta_loss).sum()),
        **rates,
    )


@dataclass(frozen=True, slots=True)
class ImageSums:
    """A column of the trials, added up by layer and struck image.

    Attributes:
        totals: ``(L, I)``, sums of the finite values.
        counts: ``(L, I)``, values that are not NaN.
        infinite: ``(L, I)``, infinite values.
    """

    totals: Floats
    counts: Floats
    infinite: Floats

    def mean(self, image_counts: Floats, weights: Floats) -> Floats:
        """Return the weighted mean over layers when image i counts so often.

        Args:
            image_counts: ``(B, I)``.
            weights: ``(L,)``, with a sum of 1.

        Returns:
            ``(B,)``; infinite where an infinite value counts, NaN where a layer has no value at all.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            means = (image_counts @ self.totals.T) / (image_counts @ self.counts.T)
        means[(image_counts @ self.infinite.T) > 0] = np.inf
        combined: Floats = means @ weights
        return combined


def image_sums(values: Floats, image: NDArray[np.int64], struck: NDArray[np.int64]) -> ImageSums:
    """Add a column up by layer and image.

    Args:
        values: ``(L, N)``.
        image: ``(L, N)``, which image each value belongs to.
        struck: ``(I,)``, the images that may occur, sorted.
    """
    finite, not_nan = np.isfinite(values), ~np.isnan(values)
    position = np.searchsorted(struck, image)

    def add(amounts: Floats) -> Floats:
        rows = [
            np.bincount(own, weights=row, minlength=len(struck)) for own, row in zip(position, amounts, strict=True)
        ]
        return np.stack(rows)

    return ImageSums(
        totals=add(np.where(finite, values, 0.0)),
        counts=add(not_nan.astype(np.float64)),
        infinite=add((not_nan & ~finite).astype(np.float64)),
    )
