"""All trials of a campaign from the chunks of one folder, or of several."""

from collections.abc import Sequence

from resilient_heads.campaign.result.prefix import Prefix
from resilient_heads.campaign.result.record_file import RESULT, TRIALS, note
from resilient_heads.campaign.result.store import CampaignFolder
from resilient_heads.campaign.trials.columns import Trials
from resilient_heads.display import spans
from resilient_heads.errors import DamagedFileError, ResultError


def gather_chunks(folders: Sequence[CampaignFolder]) -> Trials:
    """Return all trials; take each chunk from the first folder that has it complete and intact.

    If a chunk is in no folder, take all trials from the file of the result, if a folder has it.

    Raises:
        ResultError: A chunk is missing, unfinished or damaged, and no folder has the result.
    """
    chunks: dict[int, Trials] = {}
    problems: list[str] = []
    prefix = Prefix(folders[0].record)
    for chunk in range(folders[0].record.num_chunks):
        found = _find(folders, chunk, problems)
        if found is not None:
            chunks[chunk] = found
        if prefix.complete(chunks.get):
            break
    else:
        missing = [chunk for chunk in range(folders[0].record.num_chunks) if chunk not in chunks]
        if missing:
            return _from_result(folders, missing, problems)
    return Trials.gather([chunks[chunk] for chunk in sorted(chunks)])


def load_trials(folder: CampaignFolder) -> Trials:
    """Return all trials of a folder: from the file of the result, else from the chunks.

    Raises:
        ResultError: The campaign is not complete, or what is left of a damaged one is not.
    """
    try:
        return folder.read_result()
    except (FileNotFoundError, DamagedFileError) as error:
        damage = str(error) if isinstance(error, DamagedFileError) else f"it has no {RESULT}"
        if not (folder.path / TRIALS).is_dir():
            raise ResultError(
                f"{folder.path} does not hold a complete campaign: {damage}. Run the campaign's command again to "
                "repair it."
            ) from error
        try:
            trials = gather_chunks([folder])
        except ResultError as missing:
            raise ResultError(f"{folder.path} does not hold a complete campaign: {damage}. {missing}") from error
        note(
            f"{folder.path}: {damage}. The trials were read from the chunks; rh.merge_campaign(folder) writes {RESULT}."
        )
        return trials


def _find(folders: Sequence[CampaignFolder], chunk: int, problems: list[str]) -> Trials | None:
    """Return the trials of a complete chunk; None if no folder has it, with the reason in ``problems``."""
    for folder in folders:
        try:
            trials = folder.read(chunk)
        except FileNotFoundError:
            continue
        except DamagedFileError as error:
            problems.append(str(error))
            continue
        size = folder.record.trials_in(chunk)
        if len(trials) == size:
            return trials
        problems.append(f"{folder.file(chunk)} holds {len(trials)} of {size} trials")
    return None


def _from_result(folders: Sequence[CampaignFolder], missing: Sequence[int], problems: Sequence[str]) -> Trials:
    """Return all trials from the first intact result; raise ResultError that names the missing chunks without one."""
    count = f"{len(missing)} of {folders[0].record.num_chunks}"
    reasons = "".join(f"; {problem}" for problem in problems[:20])
    found = f"{folders[0].path}: {count} chunks are missing: {spans(missing)}{reasons}"
    for folder in folders:
        try:
            trials = folder.read_result()
        except (FileNotFoundError, DamagedFileError):
            continue
        note(f"{found}. The trials were read from {folder.path / RESULT}.")
        return trials
    raise ResultError(
        f"{found}. Run the campaign's command again to continue; of several processes, the one whose RANK is c modulo "
        "WORLD_SIZE runs chunk c."
    )
