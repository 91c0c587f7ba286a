"""The trials of a campaign: the image, the neuron and the bit of each, as a function of its number."""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from resilient_heads.campaign.design.designs import Design, StratifiedDesign, UniformDesign
from resilient_heads.campaign.design.fault_space import SINGLE_FLIP
from resilient_heads.campaign.design.perturbation_strata import CLASSES, PerturbationStrata
from resilient_heads.campaign.design.strata import Codes, interleave
from resilient_heads.campaign.golden.golden_run import GoldenRun
from resilient_heads.campaign.trials.columns import CampaignSite, Trials
from resilient_heads.display import as_code
from resilient_heads.errors import ArgumentError
from resilient_heads.injection.faults.draws import Draws
from resilient_heads.injection.faults.fault_model import FaultModel
from resilient_heads.injection.faults.ranges import RangeDetector
from resilient_heads.injection.random.elements import draw_single_flips
from resilient_heads.injection.random.images import draw_images, draw_weighted_images
from resilient_heads.injection.random.streams import Indices, stream_name
from resilient_heads.injection.random.words import draw_uniforms
from resilient_heads.statistics.intervals import Floats

FRAGILE_MARGINS = (0.5, 0.2, 0.05)
"""With ``fragile_images``, the weight of an image doubles for each of these that its Top2Diff is below."""


@dataclass(frozen=True, slots=True)
class InjectionPlan:
    """The trials of a campaign.

    Attributes:
        sites: The L sites.
        counts: Number of trials at each site, ``L`` numbers; the trials of a site are numbered from 0.
        seed: Seed of all draws.
        design: The design from which the plan was made.
        fault: What one trial injects.

    Raises:
        ArgumentError: The design's strata consist of single flips, and the fault is another one.
    """

    sites: tuple[CampaignSite, ...]
    counts: tuple[int, ...]
    seed: int
    design: Design
    fault: FaultModel = SINGLE_FLIP

    def __post_init__(self) -> None:
        if isinstance(self.design, StratifiedDesign) and self.design.by and self.fault != SINGLE_FLIP:
            raise ArgumentError(
                f"Strata by {' and '.join(self.design.by)} consist of single flips, found {as_code(self.fault)}; pass "
                "StratifiedDesign(by=()) or UniformDesign."
            )

    @property
    def total(self) -> int:
        """Number of trials at all sites."""
        return sum(self.counts)

    @property
    def image_groups(self) -> int:
        """Number of groups of sites with images of their own; the site ``row`` is in the group ``row % groups``."""
        return 1 if isinstance(self.design, UniformDesign) else min(self.design.image_groups, len(self.sites))

    @property
    def _prefers_fragile_images(self) -> bool:
        """Whether fragile images are drawn more often than others."""
        return isinstance(self.design, StratifiedDesign) and self.design.fragile_images

    def image_weights(self, golden: GoldenRun) -> Indices:
        """Return how often each image is drawn, relative to the others, ``(I,)``; 0 for an ineligible image.

        With ``fragile_images``, an image with a small Top2Diff is drawn up to eight times as often as others, and its
        trials have a sampling weight that is smaller by the same factor: a small change there is enough for an SDC.
        """
        image_weights = golden.eligible.astype(np.int64)
        if self._prefers_fragile_images:
            for margin in FRAGILE_MARGINS:
                image_weights *= np.where(golden.top2diff < margin, 2, 1)
        return image_weights

    def images(self, row: int, numbers: Indices, image_weights: Indices) -> Indices:
        """Return the images of the trials with these numbers at the site ``row``, ``(N,)``."""
        draws = numbers * self.image_groups + row % self.image_groups
        if self._prefers_fragile_images:
            return draw_weighted_images(self.seed, draws, image_weights)
        return draw_images(self.seed, draws, image_weights > 0)

    def sampling_weights(self, images: Indices, image_weights: Indices) -> Floats:
        """Return the weight of a trial on each of these images, ``(N,)``: smaller if the image is drawn more often."""
        if not self._prefers_fragile_images:
            return np.ones(len(images))
        weights: Floats = image_weights[image_weights > 0].mean() / image_weights[images]
        return weights

    def draw(self, row: int, numbers: Indices) -> Draws:
        """Return the faults of the trials with these numbers at the site ``row``.

        The result depends on the plan, the row and each number alone. Every number is below ``counts[row]``.

        Raises:
            ArgumentError: The design has strata by ``"perturbation"``; call :meth:`draw_with_weights`.
        """
        site, design = self.sites[row].site, self.design
        if isinstance(design, UniformDesign) or not design.by:
            # A stratified campaign has streams of its own, so that it shares no draw with a uniform one of its seed.
            purpose = () if isinstance(design, UniformDesign) else ("stratum",)
            stream = stream_name(site.name, *purpose)
            return self.fault.draw(self.seed, stream, numbers, neurons=site.neurons, word_bits=site.word_bits)
        if design.by_perturbation:
            raise ArgumentError(
                "The faults of this design depend on the golden values; call draw_with_weights() with the tensor."
            )
        return self._draw_from_strata(design, row, numbers)

    def draw_with_weights(
        self, row: int, numbers: Indices, tensor: Tensor, *, detector: RangeDetector
    ) -> tuple[Draws, Floats]:
        """Return the faults of trials, and the weight of each within its stratum, ``(N,)``.

        Args:
            row: Position of the site.
            numbers: ``(N,)``, numbers of the trials.
            tensor: The site's golden tensor for the images of the trials.
            detector: What the range detector does with a value beyond the site's range limit.
        """
        design = self.design
        if isinstance(design, UniformDesign) or not design.by_perturbation:
            return self.draw(row, numbers), np.ones(len(numbers))
        assert design.scales is not None
        site = self.sites[row].site
        stream = stream_name(site.name, "stratum")
        starts = draw_single_flips(self.seed, stream, numbers, neurons=site.neurons, word_bits=site.word_bits).neurons
        uniforms = draw_uniforms(self.seed, stream, numbers, elements=1)[:, 0]  # independent of the draw of neurons
        strata = PerturbationStrata(self.sites[row], detector, design.scales[site.name])
        chosen = strata.choose(tensor, stratum_order(design, site.name)[numbers], starts, uniforms)
        return Draws.single_flips(chosen.neurons, chosen.bits), chosen.fraction

    def _draw_from_strata(self, design: StratifiedDesign, row: int, numbers: Indices) -> Draws:
        """Return one flip for each trial, drawn uniformly from the trial's group of channels and group of bits."""
        site, strata = self.sites[row].site, design.strata(self.sites[row])
        stream, stratum_of = stream_name(site.name, "stratum"), stratum_order(design, site.name)[numbers]
        neurons, bits = np.empty(len(numbers), dtype=np.int64), np.empty(len(numbers), dtype=np.int64)
        for stratum in np.unique(stratum_of).tolist():
            chosen = stratum_of == stratum
            size, width = strata.size(stratum)
            drawn = draw_single_flips(self.seed, stream, numbers[chosen], neurons=size, word_bits=width)
            neurons[chosen], bits[chosen] = strata.locate(stratum, drawn.neurons, drawn.bits)
        return Draws.single_flips(neurons, bits)


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
        raise ArgumentError(
            f"The pilot used seed {seed} too, which would bias the estimate; pass another seed= (--seed on the command "
            "line)."
        )
    allocated = design.allocated(sites)
    assert allocated.counts is not None
    counts = tuple(sum(allocated.counts[site.name]) for site in sites)
    return InjectionPlan(tuple(sites), counts, seed, allocated, fault)


def strata_of_trials(design: Design, site: CampaignSite, trials: Trials) -> tuple[Codes, Floats]:
    """Return the stratum of each trial of one site, ``(N,)``, and the site's fraction of faults in each, ``(H,)``.

    For strata by ``"perturbation"`` the fractions are unknown and given as 1; ``trials.weight`` holds the fraction that
    each trial found.
    """
    if isinstance(design, StratifiedDesign) and design.by_perturbation:
        return stratum_order(design, site.name)[trials.trial], np.ones(CLASSES)
    strata = design.strata(site)
    return strata.of(trials.neuron, trials.bit), strata.fractions


def stratum_order(design: StratifiedDesign, name: str) -> Codes:
    """Return the stratum of each trial of the site of a name."""
    assert design.counts is not None
    return _interleaved(name, design.counts[name])


@functools.lru_cache(maxsize=4096)
def _interleaved(name: str, counts: tuple[int, ...]) -> Codes:
    """Return the order of strata at a site; the site's name shifts it, so that sites differ."""
    offset = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little") / 2**32
    order = interleave(counts, offset=offset)
    order.flags.writeable = False
    return order
