"""What trials do: where they strike, and with which bits."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from resilient_heads.injection.random.streams import Indices, Masks


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """What N trials do to K elements each.

    Attributes:
        neurons: ``(N, K)``, flat index into one sample; -1 where a trial strikes fewer than K.
        keep: ``(N, K)``, int64 masks: bits that stay, the others are cleared.
        flip: ``(N, K)``, int64 masks: bits that are flipped after that. Both act on the low bits of a word.
        uniforms: ``(N, K)``, random numbers in ``[0, 1)`` for effects that need them, else zeros.
    """

    neurons: Indices
    keep: NDArray[np.int64]
    flip: NDArray[np.int64]
    uniforms: NDArray[np.float64]

    @property
    def bits(self) -> Indices:
        """``(N, K)``, the lowest bit that each strike acts on; -1 where the effect is not about bits."""
        touched = ~self.keep | self.flip
        lowest = (touched & -touched).view(np.uint64)
        position = np.log2(np.maximum(lowest, 1).astype(np.float64)).astype(np.int64)
        return np.where((touched == 0) | (self.neurons < 0), -1, position)

    @classmethod
    def none(cls) -> "Draws":
        """Make draws of no trial."""
        return cls.single_flips(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))

    @classmethod
    def of_masks(cls, neurons: Indices, keep: Masks, flip: Masks) -> "Draws":
        """Make draws of an effect on bits."""
        return cls(neurons, keep.view(np.int64), flip.view(np.int64), np.zeros(neurons.shape))

    @classmethod
    def single_flips(cls, neurons: Indices, bits: Indices) -> "Draws":
        """Make draws of one flip a trial, given ``(N,)`` neurons and bits."""
        flip = (np.uint64(1) << bits.astype(np.uint64))[:, None]
        return cls.of_masks(neurons[:, None], np.full_like(flip, ~np.uint64(0)), flip)


@dataclass(frozen=True, slots=True, eq=False)
class TensorContext:
    """What a strike needs to know of the values around it.

    Attributes:
        shared: ``(N, K)``, int64, the word that each faulty value shares in its format; None where it shares none.
        maximum: ``(N, 1)``, the largest value of each sample; None where the effect does not ask.
    """

    shared: Tensor | None = None
    maximum: Tensor | None = None
