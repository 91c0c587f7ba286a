"""Strata of flips by what they do to the value that they meet: how far it moves, and up or down.

A flip of the top bit of the exponent throws a value to the end of the number range, or to nothing, as the value
decides; upwards it passes a ReLU, downwards it ends there. So the harm of a flip follows the signed change far more
closely than its bit. Values are known only once the golden run has come by, so how many faults each class has is not
known beforehand: a trial looks at a systematic sample of its image's neurons with all of their bits, notes the share of
its class among them, and strikes one of the class.

Source: Neyman, *Contribution to the theory of sampling human populations*, JASA 33, 1938, for double sampling.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resilient_heads.campaign.design.strata import Codes
from resilient_heads.campaign.trials.columns import CampaignSite
from resilient_heads.injection.faults.ranges import RangeDetector, apply_range
from resilient_heads.injection.formats.bits import flip_each_bit
from resilient_heads.injection.formats.dtypes import format_of
from resilient_heads.injection.random.streams import Indices
from resilient_heads.statistics.intervals import Floats

EDGES = (0.25, 1.0, 2.0, 4.0, 8.0, 128.0)
"""Sizes of a change, in units of the site's root mean square, at which classes begin."""
CLASSES = 2 * len(EDGES) + 2
"""Small changes, six sizes upwards, six downwards, and what ends in NaN or infinity."""

_CANDIDATES = 256
_LOOKED_AT = 4


def change_classes(before: Floats, after: Floats, scale: float) -> NDArray[np.int8]:
    """Return the class of each change, in the shape of ``after``.

    Args:
        before: Fault-free values.
        after: Values under the fault and behind the range detector, broadcast with ``before``.
        scale: Unit in which changes are measured, above 0.

    Returns:
        0 for a change below the first edge, then 1 to 6 upwards, 7 to 12 downwards, 13 for what is not finite.
    """
    with np.errstate(all="ignore"):
        change = (after - before) / scale
    size = np.abs(change)
    code = np.zeros(change.shape, dtype=np.int8)
    for edge in EDGES:
        code += size >= edge
    code[(change < 0) & (code > 0)] += len(EDGES)
    code[~(np.isfinite(after) & np.isfinite(before))] = CLASSES - 1
    return code


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """Where N trials strike.

    Attributes:
        neurons: ``(N,)``, flat index into what an image has of the tensor.
        bits: ``(N,)``.
        fraction: ``(N,)``, fraction of the examined faults that belong to the trial's class. Where it is 0, no fault
            of the class exists, the trial injects any fault, and its weight is 0.
    """

    neurons: Indices
    bits: Indices
    fraction: Floats


@dataclass(frozen=True, slots=True)
class PerturbationStrata:
    """The strata of one site.

    Attributes:
        struck: The site, and the limit of its detector.
        detector: What becomes of values beyond the limit.
        scale: Root mean square of the site's fault-free values.
    """

    struck: CampaignSite
    detector: RangeDetector
    scale: float

    @property
    def quiet(self) -> int:
        """Low bits of the mantissa that move a value by less than a sixteenth of itself: small for every value."""
        return max(format_of(self.struck.site.dtype).mantissa_bits - _LOOKED_AT, 0)

    def of(self, before: Floats, after: Floats, bits: NDArray[np.integer]) -> Codes:
        """Return the class of each flip, ``(N,)``, given its values before any detector and its bit."""
        judged = apply_range(torch.from_numpy(np.array(after)), self.struck.range_limit, self.detector).numpy()
        codes: Codes = change_classes(before, judged, self.scale).astype(np.int64)
        codes[np.asarray(bits) < self.quiet] = 0
        return codes

    def fractions(self, before: Tensor) -> Floats:
        """Return the share that each class has among all flips of each of N values, ``(N, CLASSES)``."""
        code = self._every(before)
        counts = np.stack([(code == one).sum(axis=-1) for one in range(CLASSES)], axis=-1)
        counts[:, 0] += self.quiet
        fractions: Floats = counts / self.struck.site.word_bits
        return fractions

    def _every(self, before: Tensor) -> NDArray[np.int8]:
        """Return the class of each flip of each value but the quiet ones, ``(..., bits - quiet)``."""
        flipped = flip_each_bit(before, lowest=self.quiet)
        after = apply_range(flipped, self.struck.range_limit, self.detector)
        return change_classes(before.double().numpy()[..., None], after.double().numpy(), self.scale)

    def choose(self, tensor: Tensor, classes: Codes, starts: Indices, picks: Floats) -> Chosen:
        """Choose a fault of a given class in each image of a batch.

        The candidates are evenly spaced neurons from a random one on, each with all of its bits, so each fault of an
        image is as likely to be a candidate as any other: the share of a class times the outcome of one of its
        candidates, taken at random, has the expectation that all faults of the class together would have.

        Args:
            tensor: The site's fault-free tensor for N images.
            classes: ``(N,)``.
            starts: ``(N,)``, the first candidate of each, uniform over the site's neurons.
            picks: ``(N,)``, uniform in ``[0, 1)``.
        """
        site = self.struck.site
        count, quiet = min(_CANDIDATES, site.neurons), self.quiet
        neurons = (starts[:, None] + np.arange(count) * site.neurons // count) % site.neurons
        places = torch.from_numpy(neurons).to(tensor.device)
        images = torch.arange(len(neurons), device=tensor.device)[:, None].expand(places.shape)
        before = tensor[site.index(images, places, len(neurons))].cpu()
        own = (self._every(before) == classes[:, None, None]).reshape(len(classes), -1)
        silent = np.where(classes == 0, quiet * count, 0)
        size = own.sum(axis=1) + silent
        rank = (picks * size).astype(np.int64)
        place = (np.cumsum(own, axis=1, dtype=np.int32) <= (rank - silent)[:, None]).sum(axis=1)
        place = np.minimum(place, own.shape[1] - 1)
        candidate, bit = np.divmod(place, site.word_bits - quiet)
        bit += quiet
        low = (rank < silent) | (size == 0)
        candidate = np.where(low, rank // max(quiet, 1), candidate)
        bit = np.where(low, rank % max(quiet, 1), bit)
        return Chosen(neurons[np.arange(len(neurons)), candidate], bit, size / (count * site.word_bits))
