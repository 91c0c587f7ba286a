"""Weighted samples of trials: what they estimate, and how much each trial moves the estimate."""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from resilient_heads.errors import ArgumentError
from resilient_heads.statistics.intervals import Floats

Codes = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Sample:
    """N trials of a campaign with their sampling weights, as a stratified survey with clusters.

    The estimate is a weighted mean over fault sites. Trials are drawn independently in each stratum. Trials on the
    same image are a cluster: they tend to have the same outcome.

    Attributes:
        weight: ``(N,)``, the sampling weight of each trial: the fraction of its stratum divided by the number of trials
            in the stratum, times the trial's own weight where the design gives it one. The weights of a site add up to
            the site's weight; all weights add up to 1.
        site: ``(N,)``, the position of the fault site, from 0.
        stratum: ``(N,)``, the stratum, from 0. Each stratum lies within one site.
        image: ``(N,)``, the image.
        image_draw: ``(N,)``, the draw of the image. Trials at several sites may share one draw, and then tend to have
            the same outcome.

    Raises:
        ArgumentError: A column is no array of N entries, or a weight is negative.

    >>> import numpy as np
    >>> sample = Sample(
    ...     weight=np.full(4, 0.25),
    ...     site=np.zeros(4, dtype=int),
    ...     stratum=np.array([0, 0, 1, 1]),
    ...     image=np.arange(4),
    ...     image_draw=np.arange(4),
    ... )
    >>> len(sample)
    4
    """

    weight: Floats
    site: Codes
    stratum: Codes
    image: Codes
    image_draw: Codes

    def __post_init__(self) -> None:
        for field in fields(self):
            column = getattr(self, field.name)
            if not isinstance(column, np.ndarray) or column.shape != np.shape(self.weight) or column.ndim != 1:
                raise ArgumentError(
                    f"{field.name} must be a NumPy array of shape (N,), as long as the other columns; found "
                    f"{column.shape if isinstance(column, np.ndarray) else type(column).__name__}."
                )
        if not (self.weight >= 0).all():
            raise ArgumentError("weight must hold numbers of at least 0; found a negative number or NaN.")

    def __repr__(self) -> str:
        strata, images = (len(np.unique(column)) for column in (self.stratum, self.image))
        return f"<Sample: {len(self):,} trials in {strata:,} strata on {images:,} images>"

    def __len__(self) -> int:
        return len(self.weight)

    def only(self, chosen: NDArray[np.bool_], *, stratified: bool) -> "Sample":
        """Return some of the trials as one site, with weights that add up to 1.

        Args:
            chosen: ``(N,)``, whether to take the trial.
            stratified: Whether ``chosen`` takes whole strata. If it does not, chance decides how many trials of a
                stratum it takes, so all chosen trials become one stratum.
        """
        weight = self.weight[chosen]
        total = weight.sum()
        zeros = np.zeros(len(weight), dtype=np.int64)
        return Sample(
            weight=weight / total if total > 0 else weight,
            site=zeros,
            stratum=np.unique(self.stratum[chosen], return_inverse=True)[1] if stratified else zeros,
            image=self.image[chosen],
            image_draw=self.image_draw[chosen],
        )


@dataclass(frozen=True, slots=True, eq=False)
class Influence:
    """An estimate and the contribution of each trial to its error.

    Attributes:
        value: The weighted mean; NaN where a site has no value.
        parts: ``(N,)``, the contributions. Their sum is 0. Summed within independent groups and then squared, they add
            up to the variance of the estimate.
    """

    value: float
    parts: Floats

    def variance(self, groups: Codes | None = None) -> float:
        """Return the variance of the estimate.

        Args:
            groups: ``(N,)``, the group of each trial: trials of different groups are independent. None: all trials are
                independent.
        """
        if groups is None:
            return float(np.square(self.parts).sum())
        sums = group_sums(self.parts, groups)
        if len(sums) < 2:
            return 0.0
        correction = 1.0 if len(sums) == len(self.parts) else len(sums) / (len(sums) - 1)
        return float(np.square(sums).sum()) * correction


def influence(sample: Sample, values: Floats) -> Influence:
    """Return the weighted mean over sites and its linearisation; each site's mean leaves out NaN values.

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
        sites = np.bincount(sample.site, weights=sample.weight)
        mass = np.bincount(sample.site, weights=kept, minlength=len(sites))
        means = np.bincount(sample.site, weights=kept * filled, minlength=len(sites)) / mass
        counted = sites > 0
        value = float((sites[counted] * means[counted]).sum()) if counted.any() else float("nan")
        parts = kept * (filled - means[sample.site]) * (sites / mass)[sample.site]
    parts = np.where(kept > 0, parts, 0.0)
    counts = np.bincount(sample.stratum)
    centre = np.bincount(sample.stratum, weights=parts) / np.maximum(counts, 1)
    # A stratum with one trial gives no deviation from its own mean: use the deviation from the site's mean.
    several = counts > 1
    scale = np.sqrt(np.where(several, counts / np.maximum(counts - 1, 1), 1.0))
    parts = (parts - np.where(several, centre, 0.0)[sample.stratum]) * scale[sample.stratum]
    return Influence(value, parts)


def group_sums(values: Floats, groups: Codes) -> Floats:
    """Return the sum of each group's values, the groups in sorted order."""
    codes = np.unique(groups, return_inverse=True)[1]
    return np.bincount(codes, weights=values).astype(np.float64)
