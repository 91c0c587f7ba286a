"""How many faults a campaign draws at each site, and from which strata."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from resilient_heads.campaign.design.allocation import WEIGHTINGS, Weighting, allocate, layer_weights
from resilient_heads.campaign.design.perturbation_strata import CLASSES
from resilient_heads.campaign.design.strata import BIT_KINDS, By, Strata, strata_of
from resilient_heads.campaign.trials.columns import CampaignSite
from resilient_heads.errors import ArgumentError
from resilient_heads.statistics.intervals import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class UniformDesign:
    """Equally many trials at every site, each uniform over the site's neurons and bits.

    Attributes:
        trials_per_site: Trials at each site.

    Raises:
        ArgumentError: A number of trials that means nothing.
    """

    trials_per_site: int

    def __post_init__(self) -> None:
        _whole("trials_per_site", self.trials_per_site, least=1)

    @property
    def pilot_seed(self) -> None:
        """No pilot was run."""
        return

    def strata(self, site: CampaignSite) -> Strata:
        """Return the one stratum of a site."""
        return strata_of(site.site, (), channel_groups=1)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {"kind": "uniform", "trials_per_site": self.trials_per_site}


@dataclass(frozen=True, slots=True, kw_only=True)
class StratifiedDesign:
    """Trials shared out among strata of each site: bit positions, roles of bits, groups of channels; layers always.

    Attributes:
        total_trials: Trials at all sites together.
        by: What makes the strata; see :func:`~resilient_heads.campaign.design.strata.strata_of`. Empty: layers alone.
            ``("perturbation",)``: what a flip does to the value that it meets, which :func:`neyman_design` sets up; see
            :mod:`~resilient_heads.campaign.design.perturbation_strata`.
        weighting: What the trials are shared out by while ``counts`` is None: ``"layer_averaged"`` (sites alike) or
            ``"bit_weighted"`` (bits alike). It changes no estimate, only which one is precise.
        channel_groups: Groups of channels if ``by`` holds ``"channel"``.
        image_groups: Into how many groups the sites fall; sites of a group strike the same images in trials of the same
            number, different groups strike different ones. More groups see more images with the same trials, and cost
            a golden run each.
        counts: Name of a site to the trials of each of its strata; None shares out in proportion.
        pilot_seed: Seed of the pilot that gave the counts; the campaign must have another, or None.
        scales: Name of a site to the unit in which its changes are measured; strata by ``"perturbation"`` need it.
        fragile_images: Whether images whose Top2Diff is small are drawn more often, and counted less; only by
            ``"perturbation"``.

    Raises:
        ArgumentError: Choices that mean nothing.
    """

    total_trials: int
    by: tuple[By, ...] = ("bit",)
    weighting: Weighting = "layer_averaged"
    channel_groups: int = 4
    image_groups: int = 1
    counts: dict[str, tuple[int, ...]] | None = None
    pilot_seed: int | None = None
    scales: dict[str, float] | None = None
    fragile_images: bool = False

    def __post_init__(self) -> None:
        for name in ("total_trials", "channel_groups", "image_groups"):
            _whole(name, getattr(self, name), least=1)
        kinds = set(self.by)
        known = kinds <= {*BIT_KINDS, "channel"} or kinds == {"perturbation"}
        if isinstance(self.by, str) or not known or len(kinds - {"channel"}) > 1:
            raise ArgumentError(
                'by must be ("perturbation",), or a tuple of "channel" and of "bit", "magnitude" or "role"; found '
                f"{self.by!r}."
            )
        if self.by_perturbation and (self.scales is None or self.counts is None):
            raise ArgumentError(
                'Strata by "perturbation" take their sizes and units from a pilot; pass '
                'rh.neyman_design(pilot, total_trials=..., by=("perturbation",)) as the design.'
            )
        if self.fragile_images and not self.by_perturbation:
            raise ArgumentError('fragile_images=True goes with by=("perturbation",) alone.')
        for layer, scale in (self.scales or {}).items():
            if not 0 < scale < math.inf:
                raise ArgumentError(f"The unit of changes of {layer!r} is above 0, found {scale}.")
        if self.weighting not in WEIGHTINGS:
            raise ArgumentError(f"weighting must be one of {', '.join(WEIGHTINGS)}, found {self.weighting!r}.")
        for layer, counts in (self.counts or {}).items():
            if not counts or min(counts) < 1:
                raise ArgumentError(
                    f"Every stratum of {layer!r} needs a trial, else nothing is known of it; found {counts}."
                )

    @property
    def by_perturbation(self) -> bool:
        """Whether the strata are made of what flips do to values, so that trials look at these first."""
        return self.by == ("perturbation",)

    def strata(self, site: CampaignSite) -> Strata:
        """Return the strata of a site, unless they are made of changes."""
        return strata_of(site.site, self.by, channel_groups=self.channel_groups)

    def allocated(self, sites: Sequence[CampaignSite]) -> "StratifiedDesign":
        """Return the design with ``counts`` for these sites.

        Raises:
            ArgumentError: Too few trials for two in each stratum, or counts that do not fit the sites.
        """
        if self.counts is None:
            weights = stratum_weights(self, sites, self.weighting)
            return replace(self, counts=allocate(self.total_trials, weights, [struck.site.name for struck in sites]))
        for struck in sites:
            found = len(self.counts.get(struck.site.name, ()))
            expected = CLASSES if self.by_perturbation else len(self.strata(struck))
            if found != expected or (self.scales is not None and struck.site.name not in self.scales):
                raise ArgumentError(
                    f"The design has counts for {found} strata of {struck.site.name!r}, which has {expected}; run the "
                    "pilot on the same layers of the same model."
                )
        return self

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        counts = None if self.counts is None else {layer: list(own) for layer, own in self.counts.items()}
        return {
            "kind": "stratified",
            "total_trials": self.total_trials,
            "by": list(self.by),
            "weighting": self.weighting,
            "channel_groups": self.channel_groups,
            "image_groups": self.image_groups,
            "counts": counts,
            "pilot_seed": self.pilot_seed,
            "scales": self.scales,
            "fragile_images": self.fragile_images,
        }


Design = UniformDesign | StratifiedDesign


def design_from_dict(content: dict[str, Any]) -> Design:
    """Undo ``as_dict``; TypeError, KeyError or ValueError where it is something else."""
    fields = {name: value for name, value in content.items() if name != "kind"}
    if content["kind"] == "uniform":
        return UniformDesign(**fields)
    if content["kind"] != "stratified":
        raise ValueError(f"no design is called {content['kind']!r}")
    counts = fields["counts"]
    fields["counts"] = None if counts is None else {layer: tuple(own) for layer, own in counts.items()}
    return StratifiedDesign(**{**fields, "by": tuple(fields["by"])})


def stratum_weights(design: Design, sites: Sequence[CampaignSite], weighting: Weighting) -> list[Floats]:
    """Return what each stratum of each site counts in a mean over all sites; all of them add up to 1."""
    layers = layer_weights(sites, weighting)
    return [weight * design.strata(struck).fractions for weight, struck in zip(layers, sites, strict=True)]


def _whole(name: str, value: int, *, least: int) -> None:
    """Raise ArgumentError unless a value is a whole number of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ArgumentError(f"{name} must be a whole number of at least {least}, found {value!r}.")
