"""Where each trial of a campaign strikes."""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from resilient_heads.campaign.design.designs import Design, StratifiedDesign, UniformDesign
from resilient_heads.campaign.design.perturbation_strata import CLASSES, PerturbationStrata
from resilient_heads.campaign.design.strata import Codes, visits
from resilient_heads.campaign.golden.golden_run import GoldenRun
from resilient_heads.campaign.trials.columns import CampaignSite, Trials
from resilient_heads.errors import ArgumentError
from resilient_heads.injection.faults.draws import Draws
from resilient_heads.injection.faults.fault_model import FaultModel
from resilient_heads.injection.faults.ranges import RangeDetector
from resilient_heads.injection.random.elements import draw_single_flips
from resilient_heads.injection.random.images import draw_images, draw_weighted_images
from resilient_heads.injection.random.streams import Indices, stream_name
from resilient_heads.injection.random.words import draw_uniforms
from resilient_heads.statistics.intervals import Floats

SINGLE_FLIP = FaultModel()
"""One bit of one neuron, both drawn uniformly."""

FRAGILE = (0.5, 0.2, 0.05)
"""Top2Diffs below each of which an image is drawn twice as often, where fragile ones are sought."""


@dataclass(frozen=True, slots=True)
class InjectionPlan:
    """The trials of a campaign, before they are run.

    Attributes:
        sites: The L sites.
        counts: Trials at each site, ``L`` numbers; trial i of a site has the number i.
        seed: Of all draws.
        design: What the plan was made from.
        fault: What a trial does.

    Raises:
        ArgumentError: A design that knows single flips only, and another fault.
    """

    sites: tuple[CampaignSite, ...]
    counts: tuple[int, ...]
    seed: int
    design: Design
    fault: FaultModel = SINGLE_FLIP

    def __post_init__(self) -> None:
        if isinstance(self.design, StratifiedDesign) and self.design.by and self.fault != SINGLE_FLIP:
            raise ArgumentError(
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
        return 1 if isinstance(self.design, UniformDesign) else min(self.design.image_groups, len(self.sites))

    @property
    def _seeks_fragile(self) -> bool:
        """Whether some images are drawn more often than others."""
        return isinstance(self.design, StratifiedDesign) and self.design.fragile_images

    def image_weights(self, golden: GoldenRun) -> Indices:
        """Return how often each image is drawn, ``(I,)``: ineligible ones never, the others alike.

        With ``fragile_images``, those that are all but misclassified without any fault are drawn up to eight times as
        often, and each counts so much less: there the smallest change is an SDC.
        """
        image_weights = golden.eligible.astype(np.int64)
        if self._seeks_fragile:
            for margin in FRAGILE:
                image_weights *= np.where(golden.top2diff < margin, 2, 1)
        return image_weights

    def images(self, row: int, numbers: Indices, image_weights: Indices) -> Indices:
        """Return the images that the trials of these numbers strike at the site ``row``, ``(N,)``."""
        own = numbers * self.image_groups + row % self.image_groups
        if self._seeks_fragile:
            return draw_weighted_images(self.seed, own, image_weights)
        return draw_images(self.seed, own, image_weights > 0)

    def sampling_weights(self, images: Indices, image_weights: Indices) -> Floats:
        """Return how much each trial on these images counts, ``(N,)``, since some images are drawn more often."""
        if not self._seeks_fragile:
            return np.ones(len(images))
        counted: Floats = image_weights[image_weights > 0].mean() / image_weights[images]
        return counted

    def draw(self, row: int, numbers: Indices) -> Draws:
        """Return where the trials of these numbers strike at the site ``row``.

        It is a pure function of the plan, the row and each number; the numbers lie below ``counts[row]``.

        Raises:
            ArgumentError: The strata are made of changes; see :meth:`draw_with_weights`.
        """
        site = self.sites[row].site
        if isinstance(self.design, UniformDesign):
            return self.fault.draw(self.seed, site.name, numbers, neurons=site.neurons, word_bits=site.word_bits)
        if not self.design.by:
            stream = stream_name(site.name, "stratum")
            return self.fault.draw(self.seed, stream, numbers, neurons=site.neurons, word_bits=site.word_bits)
        if self.design.by_perturbation:
            raise ArgumentError(
                "Where a trial strikes depends on the values that it meets; call draw_with_weights() with them."
            )
        assert self.design.counts is not None
        strata = self.design.strata(self.sites[row])
        own = _visits(site.name, self.design.counts[site.name])[numbers]
        neurons, bits = np.empty(len(numbers), dtype=np.int64), np.empty(len(numbers), dtype=np.int64)
        for stratum in np.unique(own):
            chosen = own == stratum
            size, width = strata.size(int(stratum))
            # A stream of its own: a uniform campaign of the same seed shares no draw.
            drawn = draw_single_flips(
                self.seed, stream_name(site.name, "stratum"), numbers[chosen], neurons=size, word_bits=width
            )
            neurons[chosen], bits[chosen] = strata.place(int(stratum), drawn.neurons, drawn.bits)
        return Draws.single_flips(neurons, bits)

    def draw_with_weights(
        self, row: int, numbers: Indices, tensor: Tensor, *, detector: RangeDetector
    ) -> tuple[Draws, Floats]:
        """Return where trials strike, and the ``share`` of each, ``(N,)``.

        Args:
            row: Position of the site.
            numbers: ``(N,)``, of the trials.
            tensor: The site's fault-free tensor for their images.
            detector: What becomes of values beyond the site's limit.
        """
        if isinstance(self.design, UniformDesign) or not self.design.by_perturbation:
            return self.draw(row, numbers), np.ones(len(numbers))
        struck, design = self.sites[row], self.design
        assert design.counts is not None
        assert design.scales is not None
        site = struck.site
        classes = _visits(site.name, design.counts[site.name])[numbers]
        stream = stream_name(site.name, "stratum")
        starts = draw_single_flips(self.seed, stream, numbers, neurons=site.neurons, word_bits=site.word_bits).neurons
        picks = draw_uniforms(self.seed, stream, numbers, elements=1)[:, 0]  # of words that give no neuron
        changes = PerturbationStrata(struck, detector, design.scales[site.name])
        chosen = changes.choose(tensor, classes, starts, picks)
        return Draws.single_flips(chosen.neurons, chosen.bits), chosen.fraction


def plan_trials(
    design: Design, sites: Sequence[CampaignSite], *, seed: int, fault: FaultModel = SINGLE_FLIP
) -> InjectionPlan:
    """Return the trials of a design at these sites.

    Raises:
        ArgumentError: The design's counts do not fit the sites, or the seed is the pilot's.
    """
    if isinstance(design, UniformDesign):
        return InjectionPlan(tuple(sites), (design.trials_per_site,) * len(sites), seed, design, fault)
    if design.pilot_seed == seed:
        raise ArgumentError(f"The pilot used seed {seed} too, which would bias the estimate; pass another seed=.")
    shared_out = design.allocated(sites)
    assert shared_out.counts is not None
    counts = tuple(sum(shared_out.counts[struck.site.name]) for struck in sites)
    return InjectionPlan(tuple(sites), counts, seed, shared_out, fault)


def strata_of_trials(design: Design, struck: CampaignSite, trials: Trials) -> tuple[Codes, Floats]:
    """Return the stratum of each trial of one site, ``(N,)``, and what each stratum counts in the site, ``(H,)``.

    Where the strata are made of changes each counts 1, and the share that a trial found goes into its own weight.
    """
    if isinstance(design, StratifiedDesign) and design.by_perturbation:
        assert design.counts is not None
        return _visits(struck.site.name, design.counts[struck.site.name])[trials.trial], np.ones(CLASSES)
    strata = design.strata(struck)
    return strata.of(trials.neuron, trials.bit), strata.fractions


@functools.lru_cache(maxsize=4096)
def _visits(name: str, counts: tuple[int, ...]) -> Codes:
    """Return the stratum of each trial of a site."""
    offset = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little") / 2**32
    order = visits(counts, offset=offset)
    order.flags.writeable = False
    return order
