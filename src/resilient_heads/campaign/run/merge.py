"""From the chunks that several processes wrote to one result."""

import os
from collections.abc import Sequence

from resilient_heads.campaign.result.record import differences
from resilient_heads.campaign.result.results import CampaignResult
from resilient_heads.campaign.result.store import RECORD, CampaignFolder
from resilient_heads.campaign.run.prefix import Prefix
from resilient_heads.campaign.trials.columns import Trials
from resilient_heads.errors import DamagedChunkError, ResultError


def merge_campaign(folder: str | os.PathLike[str], *others: str | os.PathLike[str]) -> CampaignResult:
    """Put the chunks of a campaign together and write them to ``folder/result.parquet``.

    The file is the same, byte for byte, as that of a single process.

    Args:
        folder: The folder that the processes wrote to.
        others: Further folders of the same campaign, where the processes had no common disk.

    Returns:
        The whole result.

    Raises:
        ResultError: A chunk is missing or damaged, or the folders are of different campaigns.
        StoreError: The result cannot be written.
    """
    folders = [CampaignFolder.open(path) for path in (folder, *others)]
    first = folders[0]
    for other in folders[1:]:
        if found := differences(first.record.as_dict(), other.record.as_dict()):
            raise ResultError(
                f"{first.path} and {other.path} hold different campaigns; {RECORD} differs: {'; '.join(found)}."
            )
    result = CampaignResult.of(first.record, Trials.gather(_chunks(folders)))
    first.write_result(result.encode())
    return result


def _chunks(folders: Sequence[CampaignFolder]) -> list[Trials]:
    """Read each chunk from the first folder that has it whole, or say which are lacking."""
    found: dict[int, Trials] = {}
    damaged = []
    prefix = Prefix(folders[0].record)
    for chunk in range(folders[0].chunks):
        for folder in folders:
            try:
                found[chunk] = folder.read(chunk)
                break
            except FileNotFoundError:
                continue
            except DamagedChunkError as error:
                damaged.append(str(error))
        if prefix.complete(found.get):
            return [found[number] for number in sorted(found)]
    missing = [chunk for chunk in range(folders[0].chunks) if chunk not in found]
    if missing:
        shown = ", ".join(str(chunk) for chunk in missing[:20]) + (", ..." if len(missing) > 20 else "")
        raise ResultError(
            f"{folders[0].path}: {len(missing)} of {folders[0].chunks} chunks are missing: {shown}"
            f"{'; ' + '; '.join(damaged) if damaged else ''}. Run the campaign's command again: chunk c is run by the "
            "process whose RANK is c modulo WORLD_SIZE."
        )
    return [found[chunk] for chunk in sorted(found)]
