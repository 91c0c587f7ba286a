"""Parts of a site's faults that are drawn by themselves: groups of channels and of bits."""

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
"""Ways of parting a word, of which strata take one at most."""
Codes = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Strata:
    """The H strata of one site: a group of channels and a group of bits each, bits running fastest.

    Attributes:
        outer, channels, inner: The output of one sample as ``(outer, channels, inner)``; a Conv's channels come first,
            those of all other modules last.
        channel_edges: ``(G + 1,)``, where the groups of channels begin, and their end.
        bit_edges: ``(K + 1,)``, where the groups of bits begin, and their end.
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
        """Each stratum's fraction of the site's bits, ``(H,)``."""
        fractions: Floats = np.outer(np.diff(self.channel_edges), np.diff(self.bit_edges)).ravel().astype(np.float64)
        fractions /= fractions.sum()
        return fractions

    def of(self, neurons: NDArray[np.integer], bits: NDArray[np.integer]) -> Codes:
        """Return the stratum of each fault, ``(N,)``."""
        channel = np.asarray(neurons, dtype=np.int64) // self.inner % self.channels
        group = np.searchsorted(self.channel_edges, channel, side="right") - 1
        kind = np.searchsorted(self.bit_edges, np.asarray(bits, dtype=np.int64), side="right") - 1
        codes: Codes = group * (len(self.bit_edges) - 1) + kind
        return codes

    def size(self, stratum: int) -> tuple[int, int]:
        """Return how many neurons and how many bits of each a stratum has."""
        group, kind = divmod(stratum, len(self.bit_edges) - 1)
        width = int(self.channel_edges[group + 1] - self.channel_edges[group])
        return self.outer * width * self.inner, int(self.bit_edges[kind + 1] - self.bit_edges[kind])

    def place(self, stratum: int, neurons: Codes, bits: Codes) -> tuple[Codes, Codes]:
        """Turn numbers within a stratum into flat neurons of the site and bits of the word."""
        group, kind = divmod(stratum, len(self.bit_edges) - 1)
        first, last = self.channel_edges[group : group + 2]
        outer, rest = np.divmod(neurons, (last - first) * self.inner)
        return outer * self.channels * self.inner + first * self.inner + rest, bits + self.bit_edges[kind]


def strata_of(site: Site, by: Sequence[By], *, channel_groups: int) -> Strata:
    """Return the strata of a site.

    Args:
        site: The site.
        by: ``"bit"`` makes every bit position a stratum, ``"role"`` mantissa, exponent and sign, ``"magnitude"`` bits
            whose flips change a value alike: mantissa, the three low bits of the exponent (a factor of 2 to 16), those
            between, its top bit, sign. ``"channel"`` makes groups of neighbouring channels; combined, each with each.
        channel_groups: How many groups of channels; a site with fewer channels has fewer.
    """
    first = site.kind.startswith("Conv")
    channels = site.shape[0] if first else site.shape[-1]
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
        outer=1 if first else rest,
        channels=channels,
        inner=rest if first else 1,
        channel_edges=np.arange(groups + 1, dtype=np.int64) * channels // groups,
        bit_edges=np.array(edges, dtype=np.int64),
    )


def visits(counts: Sequence[int], *, offset: float) -> Codes:
    """Return the stratum of each trial of a site, ``(sum(counts),)``, such that every prefix is of use.

    Each stratum comes once, those with most trials first; then each comes at even distances, so that the shares of any
    prefix are near the shares of the whole.

    Args:
        counts: Trials of each stratum.
        offset: In ``[0, 1)``; shifts the distances, so that sites do not strike one image in the same stratum.
    """
    sizes = np.asarray(counts, dtype=np.int64)
    strata = np.repeat(np.arange(len(sizes)), sizes)
    within = np.arange(len(strata)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    golden = 0.6180339887498949  # steps of the golden ratio spread over [0, 1) evenly (Weyl's sequence)
    shift = (offset + golden * np.arange(len(sizes))) % 1
    keys = np.where(within == 0, -1.0 / np.maximum(len(sizes), 1), (within + shift[strata]) / sizes[strata])
    order = np.lexsort((-sizes[strata], keys))
    return strata[order]
