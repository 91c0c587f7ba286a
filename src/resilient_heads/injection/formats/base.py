"""The interface of an emulated number format."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from resilient_heads.errors import FaultError


class NumberFormat(ABC):
    """A number format with integer words: a fault encodes a value, changes the word, and decodes it.

    In some formats several values share a word (an exponent, a bias, a scale). The values of an image, or of a
    parameter, are numbered in row-major order; ``count`` is their number.

    To add a format, subclass this class and implement ``word_bits``, ``encode`` and ``decode``. A format with shared
    words also implements ``shared_bits``, ``groups``, ``group_of`` and ``fit``.
    """

    @property
    @abstractmethod
    def word_bits(self) -> int:
        """Bits of a value's word; bit ``word_bits - 1`` is the highest."""

    @property
    def shared_bits(self) -> int:
        """Bits of the word that a group of values shares; 0 if values share nothing."""
        return 0

    @abstractmethod
    def encode(self, values: Tensor, shared: Tensor | None = None) -> Tensor:
        """Return the words nearest to the values.

        Args:
            values: float64, any shape.
            shared: int64, the shared word of each value's group, same shape; only for formats with shared words.

        Returns:
            int64, same shape, in ``[0, 2**word_bits)``.
        """

    @abstractmethod
    def decode(self, words: Tensor, shared: Tensor | None = None) -> Tensor:
        """Return the float64 values of int64 words; exact for every value that the format has."""

    def groups(self, count: int) -> int:
        """Return the number of groups of ``count`` values."""
        raise FaultError(f"{self} shares nothing among its values.")

    def group_of(self, flat: Tensor, count: int) -> Tensor:
        """Return the group of each flat index, int64."""
        raise FaultError(f"{self} shares nothing among its values.")

    def fit(self, rows: Tensor) -> Tensor:
        """Return the shared words that fit the values.

        Args:
            rows: float64 ``(R, count)``, one image or parameter in each row. NaN and infinities do not count.

        Returns:
            int64 ``(R, groups(count))``.
        """
        raise FaultError(f"{self} shares nothing among its values.")

    def members(self, group: Tensor, count: int) -> Tensor:
        """Return the flat indices of the values of some groups.

        Args:
            group: ``(N,)``, int64.
            count: Values of a row.

        Returns:
            ``(N, size of the largest group)``, int64; -1 fills up smaller groups.
        """
        of = self.group_of(torch.arange(count), count)
        sizes = torch.bincount(of, minlength=self.groups(count))
        order = torch.argsort(of, stable=True)
        start = torch.cumsum(sizes, dim=0) - sizes
        place = torch.arange(int(sizes.max()))
        inside = place < sizes[group][:, None]
        return torch.where(inside, order[(start[group][:, None] + place).clamp(max=count - 1)], -1)


def finite_maximum(rows: Tensor) -> Tensor:
    """Return the largest finite magnitude along the last dimension; 0 where there is none."""
    return torch.where(rows.isfinite(), rows.abs(), 0).amax(dim=-1)


def floor_log2(values: Tensor) -> Tensor:
    """Return the exponent of the leading bit of positive float64 values, int64; exact."""
    return torch.frexp(values).exponent.to(torch.int64) - 1


def scaled(values: Tensor, exponent: Tensor) -> Tensor:
    """Return ``values * 2**exponent`` in float64 with one rounding at most; exponents in [-2000, 2000]."""
    half = torch.div(exponent, 2, rounding_mode="floor")
    return values * _power_of_two(half) * _power_of_two(exponent - half)


def required(shared: Tensor | None, form: NumberFormat) -> Tensor:
    """Return the shared words, or raise FaultError if they are missing."""
    if shared is None:
        raise FaultError(f"{form} shares a word among values; pass shared=, from fit().")
    return shared


def _power_of_two(exponent: Tensor) -> Tensor:
    """Return 2**exponent in float64. It is built from bits and thus exact on every device."""
    return ((exponent + 1023) << 52).view(torch.float64)
