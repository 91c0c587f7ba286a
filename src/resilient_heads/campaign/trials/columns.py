"""The record of all trials, a column each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resilient_heads.campaign.trials.outcomes import Outcome
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
    """N trials, a row each, in the order of site and trial; every column has the shape ``(N,)``.

    Attributes:
        site: int32, position of the site in the campaign's list.
        trial: int64, number of the trial within its site.
        image: int64, index of the struck image.
        neuron: int64, flat index into what an image has of the site's tensor; the first one of several, -1 for none.
        bit: uint8, position in the word; the lowest one of several, 255 for a fault that is not about bits.
        before: float64, fault-free value of the neuron.
        after: float64, its value under the fault, before any range detector.
        outcome: uint8, :class:`~resilient_heads.campaign.trials.outcomes.Outcome`.
        delta_loss: float64, in nats.
        predicted: int64, faulty top-1 class.
        rank: int64, how many other classes score as high as the golden top-1 class or higher.
        confidence_change: float64, relative change of the golden top-1 class's probability.
        weight: float64, what the trial counts among those of its stratum. Where the design looks at values: the part
            of the image's possible faults among which the fault was drawn, less if the image is drawn more often than
            others; 1 otherwise.
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
        """Return the trials of all parts in the order of site and trial."""
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS}
        order = np.lexsort((columns["trial"], columns["site"]))
        return cls(**{name: column[order] for name, column in columns.items()})

    @property
    def columns(self) -> dict[str, NDArray[np.generic]]:
        """The columns by name."""
        return {name: getattr(self, name) for name in COLUMNS}

    def __len__(self) -> int:
        return len(self.outcome)

    def where(self, chosen: NDArray[np.bool_]) -> "Trials":
        """Return some of the trials, in their order."""
        return Trials(**{name: column[chosen] for name, column in self.columns.items()})  # type: ignore[arg-type]

    def rows(self, sites: Sequence[int]) -> "Trials":
        """Return the trials of some sites, which are numbered from 0 in the result."""
        position = np.full(max([*sites, int(self.site.max(initial=0))]) + 1, -1, dtype=np.int32)
        position[list(sites)] = np.arange(len(sites))
        chosen = self.where(position[self.site] >= 0)
        columns = {**chosen.columns, "site": position[chosen.site]}
        return Trials.gather([Trials(**columns)])  # type: ignore[arg-type]

    def events(self, metric: str) -> NDArray[np.bool_]:
        """Return which trials count for a rate, ``(N,)``; see :data:`RATES`."""
        finite = self.outcome != Outcome.DUE
        events: NDArray[np.bool_]
        if metric == "sdc_5":
            events = finite & (self.rank >= 5)
        elif metric in ("sdc_10", "sdc_20"):
            events = finite & (np.abs(self.confidence_change) > int(metric[4:]) / 100)
        else:
            events = self.outcome == Outcome[metric.upper()]
        return events


RATES = {
    "masked": "logits bit-identical",
    "tolerable": "logits changed, the golden top-1 class still scores highest",
    "sdc": "another class scores as high as the golden top-1 class or higher, logits finite",
    "due": "a logit is NaN or infinite",
    "sdc_5": "golden top-1 class not among the faulty top 5, logits finite",
    "sdc_10": "probability of the golden top-1 class changed by more than 10 %, logits finite",
    "sdc_20": "probability of the golden top-1 class changed by more than 20 %, logits finite",
}
"""What each rate counts. The first four share all trials out among them; the others overlap with them."""


@dataclass(frozen=True, slots=True)
class CampaignSite:
    """A site as a campaign struck it.

    Attributes:
        site: The site.
        range_limit: Range of the detector, or None.
        in_classifier: Whether it belongs to the classifier.
    """

    site: Site
    range_limit: float | None
    in_classifier: bool
