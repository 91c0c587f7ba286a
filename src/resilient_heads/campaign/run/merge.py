"""Merge the chunks that several processes wrote into one result."""

import os
from collections.abc import Sequence

from resilient_heads.campaign.result.differences import differences
from resilient_heads.campaign.result.results import CampaignResult
from resilient_heads.campaign.result.store import RECORD, CampaignFolder
from resilient_heads.campaign.run.prefix import Prefix
from resilient_heads.campaign.trials.columns import Trials
from resilient_heads.errors import DamagedChunkError, ResultError


def merge_campaign(folder: str | os.PathLike[str], *others: str | os.PathLike[str]) -> CampaignResult:
    """Merge the chunks of a campaign and write them to ``folder/result.parquet``.

    The file has the same bytes as that of a single process.

    Args:
        folder: The folder to which the processes wrote.
        others: Further folders of the same campaign, if the processes had no common disk.

    Returns:
        The whole result.

    Raises:
        ResultError: A chunk is missing or damaged, or the folders hold different campaigns.
        StoreError: The result cannot be written.

    .. code-block:: python

        result = rh.merge_campaign("run")                    # all processes wrote to one folder
        result = rh.merge_campaign("from-node-0", "from-node-1")
    """
    folders = [CampaignFolder.open(path) for path in (folder, *others)]
    first = folders[0]
    for other in folders[1:]:
        if different := differences(first.record.as_dict(), other.record.as_dict()):
            raise ResultError(
                f"{first.path} and {other.path} hold different campaigns; {RECORD} differs: {'; '.join(different)}."
            )
    result = CampaignResult(record=first.record, trials=Trials.gather(_read_chunks(folders)))
    first.write_result(result.trials)
    return result


def _read_chunks(folders: Sequence[CampaignFolder]) -> list[Trials]:
    """Return the trials of each chunk from the first folder that has it intact."""
    chunks: dict[int, Trials] = {}
    damages: list[str] = []
    prefix = Prefix(folders[0].record)
    for chunk in range(folders[0].record.num_chunks):
        for folder in folders:
            try:
                chunks[chunk] = folder.read(chunk)
                break
            except FileNotFoundError:
                continue
            except DamagedChunkError as error:
                damages.append(str(error))
        if prefix.complete(chunks.get):
            return [chunks[number] for number in sorted(chunks)]
    _require_all(folders[0], chunks, damages)
    return [chunks[chunk] for chunk in sorted(chunks)]


def _require_all(folder: CampaignFolder, chunks: dict[int, Trials], damages: Sequence[str]) -> None:
    """Raise ResultError that names the missing chunks, if there are any."""
    missing = [chunk for chunk in range(folder.record.num_chunks) if chunk not in chunks]
    if missing:
        shown = ", ".join(str(chunk) for chunk in missing[:20]) + (", ..." if len(missing) > 20 else "")
        raise ResultError(
            f"{folder.path}: {len(missing)} of {folder.record.num_chunks} chunks are missing: {shown}"
            f"{'; ' + '; '.join(damages) if damages else ''}. Run the campaign's command again: the process whose RANK "
            "is c modulo WORLD_SIZE runs chunk c."
        )
