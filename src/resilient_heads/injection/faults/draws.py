"""What trials do: the elements that they inject into, and the bits that they change."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from resilient_heads.injection.random.streams import Indices, Masks


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """What each of N trials does to K elements of one image.

    Attributes:
        neurons: ``(N, K)``, flat index into one image's part of the tensor; -1 fills the row of a trial that injects
            into fewer than K elements.
        keep: ``(N, K)``, int64 masks; bits that are 0 here are cleared.
        flip: ``(N, K)``, int64 masks; bits that are 1 here are flipped after that. Both masks act on the low bits of a
            word.
        uniforms: ``(N, K)``, uniform numbers in ``[0, 1)`` for effects that use them; zeros for others.
    """

    neurons: Indices
    keep: NDArray[np.int64]
    flip: NDArray[np.int64]
    uniforms: NDArray[np.float64]

    @property
    def bits(self) -> Indices:
        """``(N, K)``, the lowest bit that each injection acts on; -1 for an effect on values."""
        touched = ~self.keep | self.flip
        lowest = (touched & -touched).view(np.uint64)
        position = np.log2(np.maximum(lowest, 1).astype(np.float64)).astype(np.int64)
        return np.where((touched == 0) | (self.neurons < 0), -1, position)

    @classmethod
    def of_masks(cls, neurons: Indices, keep: Masks, flip: Masks) -> "Draws":
        """Return the draws of an effect on bits, given uint64 masks."""
        return cls(neurons, keep.view(np.int64), flip.view(np.int64), np.zeros(neurons.shape))

    @classmethod
    def single_flips(cls, neurons: Indices, bits: Indices) -> "Draws":
        """Return the draws of one flip in each trial, given ``(N,)`` neurons and bits."""
        flip = (np.uint64(1) << bits.astype(np.uint64))[:, None]
        return cls.of_masks(neurons[:, None], np.full_like(flip, ~np.uint64(0)), flip)


@dataclass(frozen=True, slots=True, eq=False)
class TensorContext:
    """What an effect needs to know about the fault-free tensor around an element.

    Attributes:
        shared: ``(N, K)``, int64, the word that each element shares in its number format; None if the format has none.
        maximum: ``(N, 1)``, the largest value of each image's tensor; None if the effect does not use it.
    """

    shared: Tensor | None = None
    maximum: Tensor | None = None
