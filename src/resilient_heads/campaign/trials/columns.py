"""Trials as columns."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resilient_heads.campaign.trials.rates import DELTA_LOSS, RATES
from resilient_heads.checks import one_of
from resilient_heads.display import cut, wrapped
from resilient_heads.injection.sites.site import Site

COLUMNS: dict[str, type[np.generic]] = {
    "site": np.int32,
    "trial": np.int64,
    "image": np.int64,
    "neuron": np.int64,
    "bit": np.uint8,
    "before": np.float64,
    "after": np.float64,
    "outcome": np.uint8,
    "delta_loss": np.float64,
    "predicted": np.int64,
    "rank": np.int64,
    "confidence_change": np.float64,
    "weight": np.float64,
}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Trials:
    """N trials, ordered by site and trial number; every column has the shape ``(N,)``.

    Attributes:
        site: int32, position of the site in the campaign's list of sites.
        trial: int64, number of the trial at its site.
        image: int64, index of the image.
        neuron: int64, flat index of the faulty neuron in the image's part of the site's tensor; the first of several
            neurons, -1 if the fault model drew none.
        bit: uint8, position of the faulty bit in the word; the lowest of several bits, 255 for a fault that replaces
            values instead of bits.
        before: float64, golden value of the neuron.
        after: float64, faulty value of the neuron, before the range detector.
        outcome: uint8, an :class:`~resilient_heads.campaign.trials.outcomes.Outcome`.
        delta_loss: float64, in nats.
        predicted: int64, faulty top-1 class; -1 if the model raised an error under the fault, which is a DUE.
        rank: int64, number of other classes that score as high as the golden top-1 class or higher.
        confidence_change: float64, relative change of the golden top-1 class's probability.
        weight: float64, sampling weight within the trial's stratum. It is 1, except in designs with strata by
            ``"perturbation"``: there it is the fraction of the image's possible faults from which the fault was drawn,
            divided by how much more often than on average the image is drawn.
    """

    site: NDArray[np.int32]
    trial: NDArray[np.int64]
    image: NDArray[np.int64]
    neuron: NDArray[np.int64]
    bit: NDArray[np.uint8]
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    outcome: NDArray[np.uint8]
    delta_loss: NDArray[np.float64]
    predicted: NDArray[np.int64]
    rank: NDArray[np.int64]
    confidence_change: NDArray[np.float64]
    weight: NDArray[np.float64]

    @classmethod
    def gather(cls, parts: Sequence["Trials"]) -> "Trials":
        """Return the trials of all parts, ordered by site and trial number."""
        columns = {
            name: np.concatenate([np.empty(0, kind), *(getattr(part, name) for part in parts)])
            for name, kind in COLUMNS.items()
        }
        order = np.lexsort((columns["trial"], columns["site"]))
        return cls(**{name: column[order] for name, column in columns.items()})

    def __repr__(self) -> str:
        sites, images = (len(np.unique(column)) for column in (self.site, self.image))
        return f"<Trials: {len(self):,} trials at {sites:,} sites on {images:,} images>"

    @property
    def columns(self) -> dict[str, NDArray[np.generic]]:
        """The columns by name."""
        return {name: getattr(self, name) for name in COLUMNS}

    @property
    def crashed(self) -> NDArray[np.bool_]:
        """``(N,)``, whether the model raised an error under the fault; such a trial is a DUE."""
        return np.equal(self.predicted, -1)

    def __len__(self) -> int:
        return len(self.outcome)

    def where(self, chosen: NDArray[np.bool_]) -> "Trials":
        """Return the chosen trials, in their order."""
        return Trials(**{name: column[chosen] for name, column in self.columns.items()})  # type: ignore[arg-type]

    def rows(self, sites: Sequence[int]) -> "Trials":
        """Return the trials of some sites; in the result, ``site`` is the position in ``sites``."""
        position = np.full(max([*sites, int(self.site.max(initial=0))]) + 1, -1, dtype=np.int32)
        position[list(sites)] = np.arange(len(sites))
        chosen = self.where(position[self.site] >= 0)
        columns = {**chosen.columns, "site": position[chosen.site]}
        return Trials.gather([Trials(**columns)])  # type: ignore[arg-type]

    def events(self, rate: str) -> NDArray[np.bool_]:
        """Return which trials a rate counts, ``(N,)``; ``rate`` is a name in ``RATES``."""
        return RATES[one_of("rate", rate, tuple(RATES))].events(self.outcome, self.rank, self.confidence_change)

    def values(self, metric: str) -> NDArray[np.float64]:
        """Return what each trial contributes to a metric, ``(N,)``: its delta loss, or 1 for an event of a rate."""
        return self.delta_loss if metric == DELTA_LOSS else self.events(metric).astype(np.float64)


@dataclass(frozen=True, slots=True)
class CampaignSite:
    """A fault site in a campaign.

    Attributes:
        site: The site.
        range_limit: Largest absolute value that the range detector accepts; None without a detector.
        in_classifier: Whether the site belongs to the classifier.
    """

    site: Site
    range_limit: float | None
    in_classifier: bool

    def __repr__(self) -> str:
        limit = "no range limit" if self.range_limit is None else f"range limit {self.range_limit:.3g}"
        return wrapped(
            f"<CampaignSite {cut(self.name, 50)} ({self.site.kind}): {self.site.neurons:,} neurons, {limit}>"
        )

    @property
    def name(self) -> str:
        """Name of the site."""
        return self.site.name

    @property
    def total_bits(self) -> int:
        """Bits of one image's part of the tensor: neurons times word bits."""
        return self.site.neurons * self.site.word_bits
