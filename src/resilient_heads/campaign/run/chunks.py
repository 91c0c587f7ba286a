"""Run the chunks of one shard, and write each when it is finished."""

from collections.abc import Mapping

from resilient_heads.campaign.result.record import CampaignRecord
from resilient_heads.campaign.result.shards import Shard
from resilient_heads.campaign.result.store import CampaignFolder
from resilient_heads.campaign.run.execution import Execution
from resilient_heads.campaign.result.prefix import Prefix
from resilient_heads.campaign.run.progress import Progress, show_progress
from resilient_heads.campaign.trials.columns import Trials
from resilient_heads.errors import ArgumentError, DamagedFileError


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
    finished = folder.stored(shard) if folder is not None else {}
    total = sum(_size(record, chunk) for chunk in chunks)
    prefix = Prefix(record)
    done = sum(map(len, finished.values()))
    with show_progress(progress, total=total, done=done, unit="trial") as advance:
        for chunk in chunks:
            if prefix.complete(lambda number: _known(number, finished, folder)):
                break
            if chunk not in finished:
                finished[chunk] = execution.run(*record.chunk_bounds(chunk), advance=advance)
                execution.close()  # discard the chunk if the model has changed during it
                if folder is not None:
                    folder.write(chunk, finished[chunk])
    prefix.complete(lambda number: _known(number, finished, folder))
    return Trials.gather([trials for chunk, trials in finished.items() if prefix.holds(chunk)])


def _size(record: CampaignRecord, chunk: int) -> int:
    """Return the number of trials in a chunk."""
    start, stop = record.chunk_bounds(chunk)
    return sum(max(0, min(stop, count) - start) for count in record.plan.counts)


def _known(chunk: int, finished: Mapping[int, Trials], folder: CampaignFolder | None) -> Trials | None:
    """Return the trials of a chunk that this process or another one has finished, or None."""
    if chunk in finished or folder is None:
        return finished.get(chunk)
    try:
        return folder.read(chunk)
    except (FileNotFoundError, DamagedFileError):
        return None
