"""The first chunks of a campaign, up to the one after which its stopping rule is met."""

from collections.abc import Callable

from resilient_heads.campaign.result.record import CampaignRecord
from resilient_heads.campaign.trials.columns import Trials


class Prefix:
    """Chunks 0, 1, 2, ... of a campaign. Which chunks count depends on their trials alone, not on who ran them."""

    def __init__(self, record: CampaignRecord) -> None:
        self._rule = record.config.until
        self._plan = record.plan
        self._num_chunks = record.num_chunks
        self._known: list[Trials] = []
        self._last: int | None = None

    def complete(self, trials_of: Callable[[int], Trials | None]) -> bool:
        """Check the stopping rule on further chunks; return whether it is met.

        Args:
            trials_of: Returns the trials of a chunk, or None if the chunk is not known yet.
        """
        while self._rule is not None and self._last is None and len(self._known) < self._num_chunks:
            trials = trials_of(len(self._known))
            if trials is None:
                break
            self._known.append(trials)
            if self._rule.is_met(self._plan.sites, Trials.gather(self._known), self._plan.design, self._plan.fault):
                self._last = len(self._known) - 1
        return self._last is not None

    def holds(self, chunk: int) -> bool:
        """Whether a chunk belongs to the campaign, as far as its end is known."""
        return self._last is None or chunk <= self._last
