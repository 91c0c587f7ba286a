"""Which faults a campaign draws at each site, and how many."""

import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from torch import Tensor

from resilient_heads.campaign.changes import CLASSES, Changes
from resilient_heads.campaign.golden import GoldenRun
from resilient_heads.campaign.strata import BIT_KINDS, By, Codes, Strata, strata_of, visits
from resilient_heads.campaign.trials import StruckSite, Trials
from resilient_heads.errors import DataError
from resilient_heads.injection.draws import Draws
from resilient_heads.injection.models import FaultModel
from resilient_heads.injection.ranges import RangeDetector
from resilient_heads.injection.sampling import Indices, draw_faults, draw_images, draw_shares, draw_tickets
from resilient_heads.metrics.intervals import Floats

SINGLE_FLIP = FaultModel()
"""One bit of one neuron, both drawn uniformly."""

FRAGILE = (0.5, 0.2, 0.05)
"""Top2Diffs below each of which an image is drawn twice as often, where fragile ones are sought."""

Weighting = Literal["per_layer", "exposed"]
WEIGHTINGS: tuple[Weighting, ...] = ("per_layer", "exposed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform:
    """Equally many trials at every site, each uniform over the site's neurons and bits.

    Attributes:
        trials: At each site.

    Raises:
        DataError: A number of trials that means nothing.
    """

    trials: int

    def __post_init__(self) -> None:
        _whole("trials", self.trials, least=1)

    @property
    def pilot_seed(self) -> None:
        """No pilot was run."""
        return

    def strata(self, site: StruckSite) -> Strata:
        """Return the one stratum of a site."""
        return strata_of(site.site, (), channel_groups=1)

    def plan(self, sites: Sequence[StruckSite], *, seed: int, fault: FaultModel = SINGLE_FLIP) -> "Plan":
        """Return the trials at these sites."""
        return Plan(tuple(sites), (self.trials,) * len(sites), seed, self, fault)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {"kind": "uniform", "trials": self.trials}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stratified:
    """Trials shared out among strata of each site: bit positions, roles of bits, groups of channels; layers always.

    Attributes:
        trials: At all sites together.
        by: What makes the strata; see :func:`~resilient_heads.campaign.strata.strata_of`. Empty: layers alone.
            ``("change",)``: what a flip does to the value that it meets, which :func:`neyman` sets up; see
            :mod:`~resilient_heads.campaign.changes`.
        weighting: What the trials are shared out by while ``counts`` is None: ``"per_layer"`` (sites alike) or
            ``"exposed"`` (bits alike). It changes no estimate, only which one is precise.
        channel_groups: Groups of channels if ``by`` holds ``"channel"``.
        image_groups: Into how many groups the sites fall; sites of a group strike the same images in trials of the same
            number, different groups strike different ones. More groups see more images with the same trials, and cost
            a golden run each.
        counts: Name of a site to the trials of each of its strata; None shares out in proportion.
        pilot_seed: Seed of the pilot that gave the counts; the campaign must have another, or None.
        scales: Name of a site to the unit in which its changes are measured; strata by ``"change"`` need it.
        fragile_images: Whether images whose Top2Diff is small are drawn more often, and counted less; only by
            ``"change"``.

    Raises:
        DataError: Choices that mean nothing.
    """

    trials: int
    by: tuple[By, ...] = ("bit",)
    weighting: Weighting = "per_layer"
    channel_groups: int = 4
    image_groups: int = 1
    counts: dict[str, tuple[int, ...]] | None = None
    pilot_seed: int | None = None
    scales: dict[str, float] | None = None
    fragile_images: bool = False

    def __post_init__(self) -> None:
        for name in ("trials", "channel_groups", "image_groups"):
            _whole(name, getattr(self, name), least=1)
        kinds = set(self.by)
        known = kinds <= {*BIT_KINDS, "channel"} or kinds == {"change"}
        if isinstance(self.by, str) or not known or len(kinds - {"channel"}) > 1:
            raise DataError(
                'by must be ("change",), or a tuple of "channel" and of "bit", "magnitude" or "role"; found '
                f"{self.by!r}."
            )
        if self.by_change and (self.scales is None or self.counts is None):
            raise DataError(
                'Strata by "change" take their sizes and units from a pilot; pass rh.neyman(pilot, trials=..., '
                'by=("change",)) as the design.'
            )
        if self.fragile_images and not self.by_change:
            raise DataError('fragile_images=True goes with by=("change",) alone.')
        for layer, scale in (self.scales or {}).items():
            if not 0 < scale < math.inf:
                raise DataError(f"The unit of changes of {layer!r} is above 0, found {scale}.")
        if self.weighting not in WEIGHTINGS:
            raise DataError(f"weighting must be one of {', '.join(WEIGHTINGS)}, found {self.weighting!r}.")
        for layer, counts in (self.counts or {}).items():
            if not counts or min(counts) < 1:
                raise DataError(
                    f"Every stratum of {layer!r} needs a trial, else nothing is known of it; found {counts}."
                )

    @property
    def by_change(self) -> bool:
        """Whether the strata are made of what flips do to values, so that trials look at these first."""
        return self.by == ("change",)

    def strata(self, site: StruckSite) -> Strata:
        """Return the strata of a site, unless they are made of changes."""
        return strata_of(site.site, self.by, channel_groups=self.channel_groups)

    def shared_out(self, sites: Sequence[StruckSite]) -> "Stratified":
        """Return the design with ``counts`` for these sites.

        Raises:
            DataError: Too few trials for two in each stratum, or counts that do not fit the sites.
        """
        if self.counts is None:
            weights = stratum_weights(self, sites, self.weighting)
            return replace(self, counts=allocate(self.trials, weights, [struck.site.name for struck in sites]))
        for struck in sites:
            found = len(self.counts.get(struck.site.name, ()))
            expected = CLASSES if self.by_change else len(self.strata(struck))
            if found != expected or (self.scales is not None and struck.site.name not in self.scales):
                raise DataError(
                    f"The design has counts for {found} strata of {struck.site.name!r}, which has {expected}; run the "
                    "pilot on the same layers of the same model."
                )
        return self

    def plan(self, sites: Sequence[StruckSite], *, seed: int, fault: FaultModel = SINGLE_FLIP) -> "Plan":
        """Return the trials at these sites.

        Raises:
            DataError: The counts do not fit the sites, or the seed is the pilot's.
        """
        if self.pilot_seed == seed:
            raise DataError(
                f"The pilot had the seed {seed} too, so its luck would bias the estimate; pass another seed=."
            )
        design = self.shared_out(sites)
        assert design.counts is not None
        counts = tuple(sum(design.counts[struck.site.name]) for struck in sites)
        return Plan(tuple(sites), counts, seed, design, fault)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        counts = None if self.counts is None else {layer: list(own) for layer, own in self.counts.items()}
        return {
            "kind": "stratified",
            "trials": self.trials,
            "by": list(self.by),
            "weighting": self.weighting,
            "channel_groups": self.channel_groups,
            "image_groups": self.image_groups,
            "counts": counts,
            "pilot_seed": self.pilot_seed,
            "scales": self.scales,
            "fragile_images": self.fragile_images,
        }


Design = Uniform | Stratified


def design_from_dict(content: dict[str, Any]) -> Design:
    """Undo ``as_dict``; TypeError, KeyError or ValueError where it is something else."""
    fields = {name: value for name, value in content.items() if name != "kind"}
    if content["kind"] == "uniform":
        return Uniform(**fields)
    if content["kind"] != "stratified":
        raise ValueError(f"no design is called {content['kind']!r}")
    counts = fields["counts"]
    fields["counts"] = None if counts is None else {layer: tuple(own) for layer, own in counts.items()}
    return Stratified(**{**fields, "by": tuple(fields["by"])})


@dataclass(frozen=True, slots=True)
class Plan:
    """The trials of a campaign, before they are run.

    Attributes:
        sites: The L sites.
        counts: Trials at each site, ``L`` numbers; trial i of a site has the number i.
        seed: Of all draws.
        design: What the plan was made from.
        fault: What a trial does.

    Raises:
        DataError: A design that knows single flips only, and another fault.
    """

    sites: tuple[StruckSite, ...]
    counts: tuple[int, ...]
    seed: int
    design: Design
    fault: FaultModel = SINGLE_FLIP

    def __post_init__(self) -> None:
        if isinstance(self.design, Stratified) and self.design.by and self.fault != SINGLE_FLIP:
            raise DataError(
                f"Strata of {' and '.join(self.design.by)} are made of single flips, found {self.fault}; pass "
                "Stratified(by=()) or Uniform."
            )

    @property
    def total(self) -> int:
        """Trials at all sites."""
        return sum(self.counts)

    @property
    def image_groups(self) -> int:
        """Groups of sites that strike images of their own; the site ``row`` belongs to the group ``row % groups``."""
        return 1 if isinstance(self.design, Uniform) else min(self.design.image_groups, len(self.sites))

    @property
    def _seeks_fragile(self) -> bool:
        """Whether some images are drawn more often than others."""
        return isinstance(self.design, Stratified) and self.design.fragile_images

    def tickets(self, golden: GoldenRun) -> Indices:
        """Return how often each image is drawn, ``(I,)``: ineligible ones never, the others alike.

        With ``fragile_images``, those that are all but misclassified without any fault are drawn up to eight times as
        often, and each counts so much less: there the smallest change is an SDC.
        """
        tickets = golden.eligible.astype(np.int64)
        if self._seeks_fragile:
            for margin in FRAGILE:
                tickets *= np.where(golden.top2diff < margin, 2, 1)
        return tickets

    def images(self, row: int, numbers: Indices, tickets: Indices) -> Indices:
        """Return the images that the trials of these numbers strike at the site ``row``, ``(N,)``."""
        own = numbers * self.image_groups + row % self.image_groups
        if self._seeks_fragile:
            return draw_tickets(self.seed, own, tickets)
        return draw_images(self.seed, own, tickets > 0)

    def count_for(self, images: Indices, tickets: Indices) -> Floats:
        """Return how much each trial on these images counts, ``(N,)``, since some images are drawn more often."""
        if not self._seeks_fragile:
            return np.ones(len(images))
        counted: Floats = tickets[tickets > 0].mean() / tickets[images]
        return counted

    def draw(self, row: int, numbers: Indices) -> Draws:
        """Return where the trials of these numbers strike at the site ``row``.

        It is a pure function of the plan, the row and each number; the numbers lie below ``counts[row]``.

        Raises:
            DataError: The strata are made of changes; see :meth:`strikes`.
        """
        site = self.sites[row].site
        if isinstance(self.design, Uniform):
            return self.fault.draw(self.seed, site.name, numbers, neurons=site.neurons, bits=site.bits)
        if not self.design.by:
            stream = f"{site.name}\0stratum"
            return self.fault.draw(self.seed, stream, numbers, neurons=site.neurons, bits=site.bits)
        if self.design.by_change:
            raise DataError("Where a trial strikes depends on the values that it meets; call strikes() with them.")
        assert self.design.counts is not None
        strata = self.design.strata(self.sites[row])
        own = _visits(site.name, self.design.counts[site.name])[numbers]
        neurons, bits = np.empty(len(numbers), dtype=np.int64), np.empty(len(numbers), dtype=np.int64)
        for stratum in np.unique(own):
            chosen = own == stratum
            size, width = strata.size(int(stratum))
            # A stream of its own: a uniform campaign of the same seed shares no draw.
            drawn = draw_faults(self.seed, f"{site.name}\0stratum", numbers[chosen], neurons=size, bits=width)
            neurons[chosen], bits[chosen] = strata.place(int(stratum), drawn.neurons, drawn.bits)
        return Draws.single_flips(neurons, bits)

    def strikes(self, row: int, numbers: Indices, tensor: Tensor, *, detector: RangeDetector) -> tuple[Draws, Floats]:
        """Return where trials strike, and :attr:`~resilient_heads.campaign.trials.Trials.share` of each, ``(N,)``.

        Args:
            row: Position of the site.
            numbers: ``(N,)``, of the trials.
            tensor: The site's fault-free tensor for their images.
            detector: What becomes of values beyond the site's limit.
        """
        if isinstance(self.design, Uniform) or not self.design.by_change:
            return self.draw(row, numbers), np.ones(len(numbers))
        struck, design = self.sites[row], self.design
        assert design.counts is not None
        assert design.scales is not None
        site = struck.site
        classes = _visits(site.name, design.counts[site.name])[numbers]
        stream = f"{site.name}\0stratum"
        starts = draw_faults(self.seed, stream, numbers, neurons=site.neurons, bits=site.bits).neurons
        picks = draw_shares(self.seed, stream, numbers, elements=1)[:, 0]  # of words that give no neuron
        changes = Changes(struck, detector, design.scales[site.name])
        chosen = changes.choose(tensor, classes, starts, picks)
        return Draws.single_flips(chosen.neurons, chosen.bits), chosen.share


def strata_of_trials(design: Design, struck: StruckSite, trials: Trials) -> tuple[Codes, Floats]:
    """Return the stratum of each trial of one site, ``(N,)``, and what each stratum counts in the site, ``(H,)``.

    Where the strata are made of changes each counts 1, and the share that a trial found goes into its own weight.
    """
    if isinstance(design, Stratified) and design.by_change:
        assert design.counts is not None
        return _visits(struck.site.name, design.counts[struck.site.name])[trials.trial], np.ones(CLASSES)
    strata = design.strata(struck)
    return strata.of(trials.neuron, trials.bit), strata.shares


@functools.lru_cache(maxsize=4096)
def _visits(name: str, counts: tuple[int, ...]) -> Codes:
    """Return the stratum of each trial of a site."""
    offset = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little") / 2**32
    order = visits(counts, offset=offset)
    order.flags.writeable = False
    return order


def layer_weights(sites: Sequence[StruckSite], weighting: Weighting) -> Floats:
    """Return what each site counts in a mean over them, ``(L,)``; the sum is 1."""
    if weighting == "per_layer":
        return np.full(len(sites), 1 / len(sites))
    bits: Floats = np.array([struck.site.neurons * struck.site.bits for struck in sites], dtype=np.float64)
    bits /= bits.sum()
    return bits


def stratum_weights(design: Design, sites: Sequence[StruckSite], weighting: Weighting) -> list[Floats]:
    """Return what each stratum of each site counts in a mean over all sites; all of them add up to 1."""
    layers = layer_weights(sites, weighting)
    return [weight * design.strata(struck).shares for weight, struck in zip(layers, sites, strict=True)]


def allocate(
    trials: int, amounts: Sequence[Floats], names: Sequence[str], *, least: int | Codes = 2
) -> dict[str, tuple[int, ...]]:
    """Share trials out in proportion, ``least`` at least to each stratum, by largest remainders.

    Args:
        trials: At all sites together.
        amounts: Of each site, the share of each stratum, ``(H,)``; the sum over all is 1.
        names: Of the sites.
        least: Trials of any stratum, or of each, ``(sum of H,)``; two give its variance.

    Raises:
        DataError: Fewer than ``least`` trials for each stratum.
    """
    shares = np.concatenate(amounts)
    smallest: Floats = np.broadcast_to(least, shares.shape).astype(np.float64)
    if trials < smallest.sum():
        raise DataError(
            f"{trials} trials are too few for {len(shares)} strata; pass {smallest.sum():.0f} or more, or fewer strata."
        )
    ideal = np.maximum(shares / shares.sum() * trials, smallest)
    for _ in range(64):  # what the small ones got beyond their share is taken from the others, until nobody falls below
        free = ideal > smallest
        ideal[free] *= max(trials - smallest[~free].sum(), 0) / ideal[free].sum() if free.any() else 1
        ideal = np.maximum(ideal, smallest)
        if abs(ideal.sum() - trials) < 1e-9 * trials:
            break
    counts = np.floor(ideal + 1e-9).astype(np.int64)
    first = np.argsort(counts - ideal, kind="stable")[: trials - counts.sum()]
    counts[first] += 1
    ends = np.cumsum([len(own) for own in amounts])[:-1]
    parts = np.split(counts, ends)
    return {name: tuple(part.tolist()) for name, part in zip(names, parts, strict=True)}


def _whole(name: str, value: int, *, least: int) -> None:
    """Raise DataError unless a value is a whole number of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise DataError(f"{name} must be a whole number of at least {least}, found {value!r}.")
