"""The rates of a campaign: which trials each of them counts."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resilient_heads.campaign.trials.outcomes import Outcome
from resilient_heads.checks import one_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A rate counts the trials that meet one condition.

    Attributes:
        description: The condition in words.
        outcome: Count the trials with this outcome.
        least_rank: Count the trials with finite logits in which at least so many other classes reach the golden top-1
            class.
        least_change: Count the trials with finite logits in which the probability of the golden top-1 class changes by
            more than this, relative to the golden probability.
    """

    description: str
    outcome: Outcome | None = None
    least_rank: int | None = None
    least_change: float | None = None

    def events(
        self, outcome: NDArray[np.uint8], rank: NDArray[np.int64], confidence_change: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """Return which of N trials the rate counts, ``(N,)``; the arguments are columns of ``Trials``."""
        if self.outcome is not None:
            return np.equal(outcome, self.outcome)
        counted = np.not_equal(outcome, Outcome.DUE)
        if self.least_rank is not None:
            counted &= rank >= self.least_rank
        if self.least_change is not None:
            counted &= np.abs(confidence_change) > self.least_change
        return counted


RATES = {
    "masked": Rate(description="logits bit-identical", outcome=Outcome.MASKED),
    "tolerable": Rate(
        description="logits changed, the golden top-1 class still scores highest", outcome=Outcome.TOLERABLE
    ),
    "sdc": Rate(
        description="another class scores as high as the golden top-1 class or higher, logits finite",
        outcome=Outcome.SDC,
    ),
    "due": Rate(
        description="a logit is NaN or infinite and was not so in the golden run, or the model raised an error",
        outcome=Outcome.DUE,
    ),
    "sdc_5": Rate(description="golden top-1 class not among the faulty top 5, logits finite", least_rank=5),
    "sdc_10": Rate(
        description="probability of the golden top-1 class changed by more than 10 %, logits finite", least_change=0.1
    ),
    "sdc_20": Rate(
        description="probability of the golden top-1 class changed by more than 20 %, logits finite", least_change=0.2
    ),
}
"""The rates by name. Each trial counts for exactly one of the first four; the other rates overlap with them."""

DELTA_LOSS = "delta_loss"
METRICS = (DELTA_LOSS, *RATES)
"""The mean delta loss, and the rates."""


def check_metric(metric: str) -> None:
    """Raise ArgumentError unless ``metric`` is one of :data:`METRICS`."""
    one_of("metric", metric, METRICS)
