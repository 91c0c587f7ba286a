"""Designs: how many faults a campaign draws at each site, and from which strata."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from resilient_heads.campaign.design.allocation import WEIGHTINGS, Weighting, allocate, layer_weights
from resilient_heads.campaign.design.fault_space import SINGLE_FLIP
from resilient_heads.campaign.design.perturbation_strata import CLASSES
from resilient_heads.campaign.design.strata import BIT_KINDS, By, Strata, strata_of
from resilient_heads.campaign.trials.columns import CampaignSite
from resilient_heads.checks import one_of, real_number, whole_number
from resilient_heads.display import as_code
from resilient_heads.errors import ArgumentError


@dataclass(frozen=True, slots=True, kw_only=True)
class UniformDesign:
    """The same number of trials at every site, each uniform over the site's neurons and bits.

    Attributes:
        trials_per_site: Number of trials at each site.

    Raises:
        ArgumentError: ``trials_per_site`` is not a whole number of at least 1.

    >>> UniformDesign(trials_per_site=1000)
    UniformDesign(trials_per_site=1000)
    """

    trials_per_site: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "trials_per_site", whole_number("trials_per_site", self.trials_per_site, least=1))

    @property
    def pilot_seed(self) -> None:
        """A uniform design has no pilot."""
        return

    def strata(self, site: CampaignSite) -> Strata:
        """Return the only stratum of a site."""
        return strata_of(site.site, (), channel_groups=1)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {"kind": "uniform", **asdict(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class StratifiedDesign:
    """A total number of trials, allocated to strata of each site. Strata with few trials are weighted up.

    Attributes:
        total_trials: Number of trials at all sites together.
        by: What divides a site into strata: ``"bit"``, ``"role"`` or ``"magnitude"`` of bits, ``"channel"``, or one of
            the first three with ``"channel"``; see :func:`~resilient_heads.campaign.design.strata.strata_of`. With
            ``()``, each site is one stratum. ``("perturbation",)`` divides by the change of the value;
            :func:`neyman_design` sets it up.
        weighting: Allocate in proportion to the weights of ``"layer_averaged"`` or of ``"bit_weighted"`` means, if
            ``counts`` is None. It changes no expected value, only which mean is precise.
        channel_groups: Number of groups of channels, if ``by`` has ``"channel"``.
        image_groups: Number of groups of sites. Trials of the same number use the same image at all sites of a group,
            and different images in different groups. More groups use more images for the same number of trials, and
            each needs a golden run of its own.
        counts: Number of trials in each stratum, by the name of the site; None allocates in proportion.
        pilot_seed: Seed of the pilot that gave the counts; the campaign must have another seed.
        scales: Unit of changes by the name of the site, for strata by ``"perturbation"``.
        fragile_images: Whether images with a small Top2Diff are drawn more often, with a smaller weight; only for
            strata by ``"perturbation"``.

    Raises:
        ArgumentError: A choice is unknown or out of range, or choices contradict each other.

    >>> StratifiedDesign(total_trials=20_000, by=("magnitude", "channel")).channel_groups
    4
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
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least=1))
        object.__setattr__(self, "by", ways_to_divide(self.by))
        if self.by_perturbation and (self.scales is None or self.counts is None):
            raise ArgumentError(
                'Strata by "perturbation" take their counts and scales from a pilot; pass '
                'rh.neyman_design(pilot, total_trials=..., by=("perturbation",)) as the design.'
            )
        if self.fragile_images and not self.by_perturbation:
            raise ArgumentError('fragile_images=True needs by=("perturbation",).')
        for layer, scale in (self.scales or {}).items():
            real_number(f"The scale of {layer!r}", scale, above=0, below=float("inf"))
        one_of("weighting", self.weighting, WEIGHTINGS)
        if self.counts is not None:
            object.__setattr__(self, "counts", {layer: _counts(layer, given) for layer, given in self.counts.items()})

    def __repr__(self) -> str:
        return as_code(
            self, counts=f"<of {len(self.counts or {})} sites>", scales=f"<of {len(self.scales or {})} sites>"
        )

    @property
    def by_perturbation(self) -> bool:
        """Whether the strata depend on the change of the value, so that a trial examines the golden values first."""
        return self.by == ("perturbation",)

    def strata(self, site: CampaignSite) -> Strata:
        """Return the strata of a site; not for strata by ``"perturbation"``."""
        return strata_of(site.site, self.by, channel_groups=self.channel_groups)

    def allocated(self, sites: Sequence[CampaignSite]) -> "StratifiedDesign":
        """Return the design with ``counts`` for these sites.

        Raises:
            ArgumentError: There are fewer than two trials for each stratum, or the counts do not fit the sites.
        """
        if self.counts is None:
            weights = layer_weights(sites, self.weighting, SINGLE_FLIP)  # a design does not know the fault
            amounts = [weight * self.strata(site).fractions for weight, site in zip(weights, sites, strict=True)]
            return replace(self, counts=allocate(self.total_trials, amounts, [site.name for site in sites]))
        for site in sites:
            found = len(self.counts.get(site.name, ()))
            expected = CLASSES if self.by_perturbation else len(self.strata(site))
            if found != expected or (self.scales is not None and site.name not in self.scales):
                raise ArgumentError(
                    f"The design has counts for {found} strata of {site.name!r}, which has {expected}; run the pilot "
                    "on the same layers of the same model."
                )
        return self

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        counts = None if self.counts is None else {layer: list(each) for layer, each in self.counts.items()}
        return {"kind": "stratified", **asdict(self), "by": list(self.by), "counts": counts}


Design = UniformDesign | StratifiedDesign


def design_from_dict(content: dict[str, Any]) -> Design:
    """Undo ``as_dict``; raise TypeError, KeyError or ValueError for other content."""
    fields = {name: value for name, value in content.items() if name != "kind"}
    if content["kind"] == "uniform":
        return UniformDesign(**fields)
    if content["kind"] != "stratified":
        raise ValueError(f"no design is named {content['kind']!r}")
    counts = fields["counts"]
    fields["counts"] = None if counts is None else {layer: tuple(each) for layer, each in counts.items()}
    return StratifiedDesign(**{**fields, "by": tuple(fields["by"])})


def ways_to_divide(by: object) -> tuple[By, ...]:
    """Return ``by`` as a tuple; raise ArgumentError unless it names ways to divide a site that go together."""
    ways = tuple(by) if isinstance(by, Sequence) and not isinstance(by, str) else (by,)
    kinds = {way for way in ways if isinstance(way, str)}
    known = kinds <= {*BIT_KINDS, "channel"} or kinds == {"perturbation"}
    if isinstance(by, str) or not known or len(kinds) < len(ways) or len(kinds - {"channel"}) > 1:
        raise ArgumentError(
            'by must be ("perturbation",), or a tuple of "channel" and at most one of "bit", "magnitude" and "role"; '
            f"found {by!r}."
        )
    return ways


def _counts(layer: str, given: object) -> tuple[int, ...]:
    """Return the numbers of trials in the strata of a site as a tuple."""
    if not isinstance(given, Sequence) or not given:
        raise ArgumentError(f"The counts of {layer!r} must be a tuple, such as (8, 2); found {given!r}.")
    return tuple(whole_number(f"Each of the counts of {layer!r}", count, least=1) for count in given)
