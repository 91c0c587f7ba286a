"""Strata of flips by the perturbation that they cause: how far the value moves, and whether up or down.

A flip of the exponent's top bit moves a value to the end of the number range or close to 0, depending on the value. An
upward change passes a ReLU, a downward change ends there. So the harm of a flip depends much more on the signed change
than on the bit. The values are known only after the golden run of a batch, so the number of faults in each class is
unknown before. Therefore each trial examines a systematic sample of its image's neurons with all of their bits, records
which fraction of these faults belongs to its class, and injects one fault of the class.

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
"""Lower ends of the classes of changes, in units of the root mean square of the site's values."""
CLASSES = 2 * len(EDGES) + 2
"""Small changes, six sizes upward, six sizes downward, and changes to NaN or infinity."""

_CANDIDATES = 256
_EXAMINED_MANTISSA_BITS = 4


def change_classes(before: Floats, after: Floats, scale: float) -> NDArray[np.int8]:
    """Return the class of each change, in the shape of ``after``.

    Args:
        before: Golden values.
        after: Faulty values behind the range detector, broadcast with ``before``.
        scale: Unit of the changes, above 0.

    Returns:
        0 for a change below the first edge, 1 to 6 for upward changes, 7 to 12 for downward changes, and 13 if a value
        is not finite.
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
class ChosenFlips:
    """One flip for each of N trials.

    Attributes:
        neurons: ``(N,)``, flat index into the image's part of the tensor.
        bits: ``(N,)``, position in the word.
        fraction: ``(N,)``, fraction of the examined faults that belong to the trial's class. If no fault of the class
            exists, it is 0: the trial injects any fault, and its weight is 0.
    """

    neurons: Indices
    bits: Indices
    fraction: Floats


@dataclass(frozen=True, slots=True)
class PerturbationStrata:
    """The strata of one site.

    Attributes:
        site: The site with the range limit of its detector.
        detector: What the range detector does with a value beyond the limit.
        scale: Root mean square of the site's golden values.
    """

    site: CampaignSite
    detector: RangeDetector
    scale: float

    @property
    def low_bits(self) -> int:
        """Number of low mantissa bits, which change any value by less than a sixteenth: their flips are of class 0."""
        return max(format_of(self.site.site.dtype).mantissa_bits - _EXAMINED_MANTISSA_BITS, 0)

    def of(self, before: Floats, after: Floats, bits: NDArray[np.integer]) -> Codes:
        """Return the class of each flip, ``(N,)``, from its bit and its values before the range detector."""
        restricted = apply_range(torch.from_numpy(np.array(after)), self.site.range_limit, self.detector).numpy()
        codes: Codes = change_classes(before, restricted, self.scale).astype(np.int64)
        codes[np.asarray(bits) < self.low_bits] = 0
        return codes

    def fractions(self, before: Tensor) -> Floats:
        """Return which fraction of all flips of each of N values belongs to each class, ``(N, CLASSES)``."""
        code = self._classes_of_high_flips(before)
        counts = np.stack([(code == one).sum(axis=-1) for one in range(CLASSES)], axis=-1)
        counts[:, 0] += self.low_bits
        fractions: Floats = counts / self.site.site.word_bits
        return fractions

    def choose(self, tensor: Tensor, classes: Codes, starts: Indices, uniforms: Floats) -> ChosenFlips:
        """Choose a flip of a given class in each image of a batch.

        The candidates are all bits of evenly spaced neurons, beginning at a random one. So every fault of the image is
        a candidate with the same probability, and the fraction of a class times the outcome of one of its candidates,
        chosen at random, is an unbiased estimate of the outcomes of the whole class.

        Args:
            tensor: The site's golden tensor for N images.
            classes: ``(N,)``, the class of each trial.
            starts: ``(N,)``, the first candidate neuron of each trial, uniform over the site's neurons.
            uniforms: ``(N,)``, uniform in ``[0, 1)``; they choose among the candidates.
        """
        neurons = self._candidates(starts)
        members = self._classes_of_high_flips(self._values(tensor, neurons)) == classes[:, None, None]
        members = members.reshape(len(classes), -1)
        low_members = np.where(classes == 0, self.low_bits * neurons.shape[1], 0)
        size = members.sum(axis=1) + low_members
        rank = (uniforms * size).astype(np.int64)
        candidate, bit = self._member(members, low_members, size, rank)
        fraction = size / (neurons.shape[1] * self.site.site.word_bits)
        return ChosenFlips(neurons[np.arange(len(neurons)), candidate], bit, fraction)

    def _candidates(self, starts: Indices) -> Indices:
        """Return evenly spaced neurons for each trial, ``(N, K)``."""
        neurons = self.site.site.neurons
        count = min(_CANDIDATES, neurons)
        return (starts[:, None] + np.arange(count) * neurons // count) % neurons

    def _values(self, tensor: Tensor, neurons: Indices) -> Tensor:
        """Return the golden values of K neurons in each of N images, ``(N, K)``, on the CPU."""
        positions = torch.from_numpy(neurons).to(tensor.device)
        images = torch.arange(len(neurons), device=tensor.device)[:, None].expand(positions.shape)
        return tensor[self.site.site.index(images, positions, len(neurons))].cpu()

    def _classes_of_high_flips(self, before: Tensor) -> NDArray[np.int8]:
        """Return the class of a flip of each bit but the low ones of each value, ``(..., word_bits - low_bits)``."""
        flipped = flip_each_bit(before, lowest=self.low_bits)
        after = apply_range(flipped, self.site.range_limit, self.detector)
        return change_classes(before.double().numpy()[..., None], after.double().numpy(), self.scale)

    def _member(
        self, members: NDArray[np.bool_], low_members: Indices, size: Indices, rank: Indices
    ) -> tuple[Indices, Indices]:
        """Return the candidate and the bit of the fault that has a rank in its class: low bits first, then the others.

        Args:
            members: ``(N, K * (word_bits - low_bits))``, which flips of other bits belong to the class.
            low_members: ``(N,)``, how many flips of low bits belong to the class.
            size: ``(N,)``, how many flips belong to the class.
            rank: ``(N,)``, from 0 to below ``size``; 0 where ``size`` is 0.
        """
        position = (np.cumsum(members, axis=1, dtype=np.int32) <= (rank - low_members)[:, None]).sum(axis=1)
        position = np.minimum(position, members.shape[1] - 1)
        candidate, bit = np.divmod(position, self.site.site.word_bits - self.low_bits)
        is_low = (rank < low_members) | (size == 0)
        low_bits = max(self.low_bits, 1)
        candidate = np.where(is_low, rank // low_bits, candidate)
        return candidate, np.where(is_low, rank % low_bits, bit + self.low_bits)
