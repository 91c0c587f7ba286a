"""Merge the chunks that several processes wrote into one result."""

import os

from resilient_heads.campaign.result.differences import differences
from resilient_heads.campaign.result.gather import gather_chunks
from resilient_heads.campaign.result.record_file import RECORD
from resilient_heads.campaign.result.results import CampaignResult
from resilient_heads.campaign.result.store import CampaignFolder
from resilient_heads.errors import ResultError


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
    result = CampaignResult(record=first.record, trials=gather_chunks(folders))
    first.write_result(result.trials)
    return result
