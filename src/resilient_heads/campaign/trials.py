"""The record of all trials, a column each."""

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resilient_heads.campaign.outcomes import Outcome
from resilient_heads.injection.sites import Site


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Trials:
    """L layers of N trials each; every column has the shape ``(L, N)``.

    Attributes:
        image: int64, index of the struck image.
        neuron: int64, flat index into one sample's output.
        bit: uint8, position in the word.
        before: float64, fault-free value of the neuron.
        after: float64, its value with the bit flipped, before any range detector.
        outcome: uint8, :class:`~resilient_heads.campaign.outcomes.Outcome`.
        delta_loss: float64, in nats.
        predicted: int64, faulty top-1 class.
        rank: int64, how many other classes score as high as the golden top-1 class or higher.
        confidence_change: float64, relative change of the golden top-1 class's probability.
    """

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

    @classmethod
    def empty(cls, layers: int, trials: int) -> "Trials":
        """Return a table to be filled; outcomes start at 255, which is none."""
        columns = {name: np.zeros((layers, trials), dtype=dtype) for name, dtype in COLUMNS.items()}
        columns["outcome"].fill(255)
        return cls(**columns)

    @property
    def columns(self) -> dict[str, NDArray[np.generic]]:
        """The columns by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def shape(self) -> tuple[int, int]:
        """(L, N)."""
        layers, trials = self.outcome.shape
        return layers, trials

    def rows(self, layers: list[int]) -> "Trials":
        """Return the trials of some layers."""
        return Trials(**{name: column[layers] for name, column in self.columns.items()})  # type: ignore[arg-type]

    def hits(self, metric: str) -> NDArray[np.bool_]:
        """Return which trials count for a rate, ``(L, N)``; see :data:`RATES`."""
        finite = self.outcome != Outcome.DUE
        hits: NDArray[np.bool_]
        if metric == "sdc_5":
            hits = finite & (self.rank >= 5)
        elif metric in ("sdc_10", "sdc_20"):
            hits = finite & (np.abs(self.confidence_change) > int(metric[4:]) / 100)
        else:
            hits = self.outcome == Outcome[metric.upper()]
        return hits


COLUMNS: dict[str, type[np.generic]] = {
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
}

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
class StruckSite:
    """A site as a campaign struck it.

    Attributes:
        site: The site.
        limit: Range of the detector, or None.
        is_last: Whether it belongs to the classifier.
    """

    site: Site
    limit: float | None
    is_last: bool
