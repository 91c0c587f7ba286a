"""Strata of a site: each holds the flips in one group of channels and one group of bits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from resilient_heads.injection.formats.dtypes import format_of
from resilient_heads.injection.sites.site import Site
from resilient_heads.statistics.intervals import Floats

By = Literal["bit", "magnitude", "role", "channel", "perturbation"]
BIT_KINDS = ("bit", "magnitude", "role")
"""Ways to divide a word into groups of bits; a design uses at most one of them."""
Codes = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Strata:
    """The H strata of one site. Each has a group of channels and a group of bits; the groups of bits vary fastest.

    Attributes:
        outer: Elements before the channel dimension of one image's part of the tensor; 1 for a convolution.
        channels: Channels.
        inner: Elements after the channel dimension; 1 for every module but a convolution.
        channel_edges: ``(G + 1,)``, first channel of each group, and the number of channels.
        bit_edges: ``(K + 1,)``, first bit of each group, and the number of bits.
    """

    outer: int
    channels: int
    inner: int
    channel_edges: Codes
    bit_edges: Codes

    def __len__(self) -> int:
        return (len(self.channel_edges) - 1) * (len(self.bit_edges) - 1)

    @property
    def fractions(self) -> Floats:
        """Fraction of the site's bits in each stratum, ``(H,)``."""
        fractions: Floats = np.outer(np.diff(self.channel_edges), np.diff(self.bit_edges)).ravel().astype(np.float64)
        fractions /= fractions.sum()
        return fractions

    def of(self, neurons: NDArray[np.integer], bits: NDArray[np.integer]) -> Codes:
        """Return the stratum of each flip, ``(N,)``."""
        channel = np.asarray(neurons, dtype=np.int64) // self.inner % self.channels
        group = np.searchsorted(self.channel_edges, channel, side="right") - 1
        # Inner edges only, so that a trial without a bit (255) stays among the strata of its own site.
        kind = np.searchsorted(self.bit_edges[1:-1], np.asarray(bits, dtype=np.int64), side="right")
        codes: Codes = group * (len(self.bit_edges) - 1) + kind
        return codes

    def size(self, stratum: int) -> tuple[int, int]:
        """Return the number of neurons in a stratum, and the number of bits in each neuron."""
        group, kind = divmod(stratum, len(self.bit_edges) - 1)
        width = int(self.channel_edges[group + 1] - self.channel_edges[group])
        return self.outer * width * self.inner, int(self.bit_edges[kind + 1] - self.bit_edges[kind])

    def locate(self, stratum: int, neurons: Codes, bits: Codes) -> tuple[Codes, Codes]:
        """Return neurons of the site and bits of the word for neurons and bits that are numbered within a stratum."""
        group, kind = divmod(stratum, len(self.bit_edges) - 1)
        first, last = self.channel_edges[group : group + 2]
        outer, rest = np.divmod(neurons, (last - first) * self.inner)
        return outer * self.channels * self.inner + first * self.inner + rest, bits + self.bit_edges[kind]


def strata_of(site: Site, by: Sequence[By], *, channel_groups: int) -> Strata:
    """Return the strata of a site.

    Args:
        site: The site.
        by: ``"bit"`` gives a group for each bit; ``"role"`` gives mantissa, exponent and sign; ``"magnitude"`` gives
            bits whose flips change a value by a similar factor: mantissa, the three low bits of the exponent (2 to 16),
            its middle bits, its top bit, and the sign. ``"channel"`` gives groups of neighbouring channels. Groups of
            channels and groups of bits are combined, each with each.
        channel_groups: Number of groups of channels; a site with fewer channels has fewer groups.
    """
    channels_first = site.kind.startswith("Conv")
    channels = site.shape[0] if channels_first else site.shape[-1]
    rest = site.neurons // channels
    groups = min(channel_groups, channels) if "channel" in by else 1
    width = site.word_bits
    if "bit" in by:
        edges = list(range(width + 1))
    elif "magnitude" in by:
        mantissa = format_of(site.dtype).mantissa_bits
        edges = sorted({0, mantissa, min(mantissa + 3, width - 2), width - 2, width - 1, width})
    elif "role" in by:
        edges = [0, format_of(site.dtype).mantissa_bits, width - 1, width]
    else:
        edges = [0, width]
    return Strata(
        outer=1 if channels_first else rest,
        channels=channels,
        inner=rest if channels_first else 1,
        channel_edges=np.arange(groups + 1, dtype=np.int64) * channels // groups,
        bit_edges=np.array(edges, dtype=np.int64),
    )


def interleave(counts: Sequence[int], *, offset: float) -> Codes:
    """Return the stratum of each trial of a site, ``(sum(counts),)``, in an order in which every prefix is useful.

    First every stratum comes once, the largest first. Then each stratum comes at even distances, so that the fractions
    of the strata in a prefix are close to those in the whole.

    Args:
        counts: Number of trials in each stratum.
        offset: In ``[0, 1)``; shifts the distances, so that sites differ in the stratum of a trial number.
    """
    sizes = np.asarray(counts, dtype=np.int64)
    strata = np.repeat(np.arange(len(sizes)), sizes)
    within = np.arange(len(strata)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    golden = 0.6180339887498949  # multiples of the golden ratio modulo 1 are evenly spread (Weyl's sequence)
    shift = (offset + golden * np.arange(len(sizes))) % 1
    keys = np.where(within == 0, -1.0 / np.maximum(len(sizes), 1), (within + shift[strata]) / sizes[strata])
    order = np.lexsort((-sizes[strata], keys))
    return strata[order]
