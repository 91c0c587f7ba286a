"""Trials with weights: what they estimate, and how each of them moves the estimate."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resilient_heads.statistics.intervals import Floats

Codes = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Sample:
    """N trials as a survey: layers are averaged, strata were drawn by themselves, images are clusters.

    Attributes:
        weight: ``(N,)``, what a trial counts: the share of its stratum divided by the trials run in it; where trials
            find the share themselves, weights within a stratum differ. The weights of a layer add up to the layer's
            weight, all of them to 1.
        layer: ``(N,)``, from 0.
        stratum: ``(N,)``, from 0; trials of one stratum share the layer.
        image: ``(N,)``, the struck images.
        trial: ``(N,)``, labels of the draws of an image: trials of one draw may be alike in all layers.
    """

    weight: Floats
    layer: Codes
    stratum: Codes
    image: Codes
    trial: Codes

    def __len__(self) -> int:
        return len(self.weight)

    def only(self, chosen: NDArray[np.bool_], *, stratified: bool) -> "Sample":
        """Return some of the trials as a domain, taken as one layer, with weights that add up to 1.

        Args:
            chosen: ``(N,)``.
            stratified: Whether each stratum lies in the domain or outside it as a whole; else how many trials fell
                into the domain is chance, and the strata are given up.
        """
        weight = self.weight[chosen]
        total = weight.sum()
        zeros = np.zeros(len(weight), dtype=np.int64)
        return Sample(
            weight=weight / total if total > 0 else weight,
            layer=zeros,
            stratum=np.unique(self.stratum[chosen], return_inverse=True)[1] if stratified else zeros,
            image=self.image[chosen],
            trial=self.trial[chosen],
        )


@dataclass(frozen=True, slots=True, eq=False)
class Influence:
    """An estimate and what each trial adds to its error.

    Attributes:
        value: The weighted mean; NaN where a layer has no value.
        parts: ``(N,)``, adding up to 0; their squares, summed within independent groups first, add up to the variance.
    """

    value: float
    parts: Floats

    def variance(self, groups: Codes | None = None) -> float:
        """Return the estimate's variance if trials of one group are alike, or if all are independent.

        Args:
            groups: ``(N,)``, labels of the groups.
        """
        if groups is None:
            return float(np.square(self.parts).sum())
        sums = group_sums(self.parts, groups)
        if len(sums) < 2:
            return 0.0
        few = 1.0 if len(sums) == len(self.parts) else len(sums) / (len(sums) - 1)
        return float(np.square(sums).sum()) * few


def influence(sample: Sample, values: Floats) -> Influence:
    """Return the weighted mean of layers, each a mean over its values that are not NaN, and its linearisation.

    Args:
        sample: N trials.
        values: ``(N,)``, finite or NaN.

    Source: Deville, *Variance estimation for complex statistics and estimators: linearization and residual
    techniques*, Survey Methodology 25, 1999.
    """
    present = ~np.isnan(values)
    filled = np.where(present, values, 0.0)
    kept = sample.weight * present
    with np.errstate(invalid="ignore", divide="ignore"):
        layers = np.bincount(sample.layer, weights=sample.weight)
        mass = np.bincount(sample.layer, weights=kept, minlength=len(layers))
        means = np.bincount(sample.layer, weights=kept * filled, minlength=len(layers)) / mass
        counted = layers > 0
        value = float((layers[counted] * means[counted]).sum()) if counted.any() else float("nan")
        parts = kept * (filled - means[sample.layer]) * (layers / mass)[sample.layer]
    parts = np.where(kept > 0, parts, 0.0)
    counts = np.bincount(sample.stratum)
    centre = np.bincount(sample.stratum, weights=parts) / np.maximum(counts, 1)
    # A stratum of one trial has no residual of its own: there the deviation from the layer's mean stands for it.
    several = counts > 1
    scale = np.sqrt(np.where(several, counts / np.maximum(counts - 1, 1), 1.0))
    parts = (parts - np.where(several, centre, 0.0)[sample.stratum]) * scale[sample.stratum]
    return Influence(value, parts)


def group_sums(parts: Floats, groups: Codes) -> Floats:
    """Add up by group; the groups in sorted order."""
    codes = np.unique(groups, return_inverse=True)[1]
    return np.bincount(codes, weights=parts).astype(np.float64)
