"""The chunks of a campaign up to the one at which it has seen enough."""

from collections.abc import Callable

from resilient_heads.campaign.figures.stopping import reached
from resilient_heads.campaign.result.record import CampaignRecord
from resilient_heads.campaign.trials.columns import Trials


class Prefix:
    """Chunks 0, 1, 2, ... of a campaign; which of them count depends on them alone, not on who ran them.

    Args:
        record: The campaign.
    """

    def __init__(self, record: CampaignRecord) -> None:
        self._record = record
        self._plan = record.plan
        self._chunks = -(-max(self._plan.counts) // record.config.chunk_size)
        self._known: list[Trials] = []
        self._last: int | None = None

    def complete(self, chunk: Callable[[int], Trials | None]) -> bool:
        """Look at further chunks; return whether the campaign has seen enough before its end.

        Args:
            chunk: Gives the trials of a chunk, or None if it is not known yet.
        """
        rule = self._record.config.until
        while rule is not None and self._last is None and len(self._known) < self._chunks:
            trials = chunk(len(self._known))
            if trials is None:
                break
            self._known.append(trials)
            if reached(rule, self._plan.sites, Trials.gather(self._known), self._plan.design):
                self._last = len(self._known) - 1
        return self._last is not None

    def holds(self, chunk: int) -> bool:
        """Whether a chunk is part of the campaign, as far as it is known."""
        return self._last is None or chunk <= self._last
