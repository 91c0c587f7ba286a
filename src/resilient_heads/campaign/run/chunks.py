"""Run the chunks of one shard, and write each while it grows and when it is finished."""

import contextlib
import time
from collections.abc import Callable, Mapping

from resilient_heads.campaign.result.prefix import Prefix
from resilient_heads.campaign.result.record import CampaignRecord
from resilient_heads.campaign.result.shards import Shard
from resilient_heads.campaign.result.store import CampaignFolder
from resilient_heads.campaign.run.execution import Execution
from resilient_heads.campaign.run.progress import Progress, show_progress
from resilient_heads.campaign.trials.columns import Trials
from resilient_heads.errors import ArgumentError, DamagedFileError, ResilientHeadsError
from resilient_heads.phases import phase

_SECONDS = 10.0
"""An unfinished chunk is written at most so often."""

_TIMES = 50
"""Writing an unfinished chunk, and checking the model before, takes at most one part in so many of the time."""


def run_chunks(
    execution: Execution, record: CampaignRecord, folder: CampaignFolder | None, shard: Shard, *, progress: Progress
) -> Trials:
    """Run the chunks of a shard that the folder does not have yet, and return all trials of the shard.

    Raises:
        ArgumentError: The campaign has fewer chunks than processes.
    """
    if shard.world_size > record.num_chunks:
        raise ArgumentError(
            f"The campaign has {record.num_chunks} chunks for {shard.world_size} processes; start at most "
            f"{record.num_chunks} processes, or pass a chunk_size below {record.config.trials_per_chunk}."
        )
    chunks = shard.chunks(record.num_chunks)
    stored: dict[int, Trials] = {}
    if folder is not None:
        with phase("reading the finished trials"):
            stored = folder.stored(shard)
    finished = {chunk: trials for chunk, trials in stored.items() if len(trials) == record.trials_in(chunk)}
    total = sum(record.trials_in(chunk) for chunk in chunks)
    prefix = Prefix(record)
    with show_progress(progress, total=total, done=sum(map(len, stored.values())), unit="trial") as advance:
        for chunk in chunks:
            if prefix.complete(lambda number: _known(number, finished, folder)):
                break
            if chunk not in finished:
                growing = _GrowingChunk(execution, record, folder, chunk, stored.get(chunk))
                finished[chunk] = growing.run(advance)
    prefix.complete(lambda number: _known(number, finished, folder))
    return Trials.gather([trials for chunk, trials in finished.items() if prefix.holds(chunk)])


class _GrowingChunk:
    """A chunk whose trials are run, and written now and then, so that a campaign that is stopped keeps them."""

    def __init__(
        self,
        execution: Execution,
        record: CampaignRecord,
        folder: CampaignFolder | None,
        chunk: int,
        known: Trials | None,
    ) -> None:
        self._execution = execution
        self._record = record
        self._folder = folder
        self._chunk = chunk
        self._known = known
        self._parts = [] if known is None else [known]
        self._due = time.monotonic() + _SECONDS

    def run(self, advance: Callable[[int], object]) -> Trials:
        """Run the trials that are not known yet, and return all trials of the chunk."""
        try:
            for part in self._execution.run(*self._record.chunk_bounds(self._chunk), known=self._known):
                self._parts.append(part)
                advance(len(part))
                if time.monotonic() > self._due:
                    self._write()
            return self._write()
        except ResilientHeadsError:
            raise
        except BaseException:
            with contextlib.suppress(Exception):  # what stopped the run is what the caller must see
                self._write()
            raise

    def _write(self) -> Trials:
        """Write the trials so far, unless the model has changed meanwhile, and return them."""
        started = time.monotonic()
        trials = Trials.gather(self._parts)
        self._execution.close()
        if self._folder is not None and len(trials):
            self._folder.write(self._chunk, trials)
        now = time.monotonic()
        self._due = now + max(_SECONDS, _TIMES * (now - started))
        return trials


def _known(chunk: int, finished: Mapping[int, Trials], folder: CampaignFolder | None) -> Trials | None:
    """Return the trials of a chunk that this process or another one has finished, or None."""
    if chunk in finished or folder is None:
        return finished.get(chunk)
    try:
        trials = folder.read(chunk)
    except (FileNotFoundError, DamagedFileError):
        return None
    return trials if len(trials) == folder.record.trials_in(chunk) else None
