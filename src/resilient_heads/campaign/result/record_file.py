"""The record and the golden run in a campaign's folder: read, written once, mended from what else the folder has."""

import warnings
from pathlib import Path
from typing import Any

from resilient_heads.campaign.golden.golden_run import GoldenRun
from resilient_heads.campaign.result.differences import differences
from resilient_heads.campaign.result.record import CampaignRecord, parse_record
from resilient_heads.campaign.trials.seal import read_file
from resilient_heads.campaign.trials.trial_file import encode_golden, read_golden, read_record_copy, read_trials
from resilient_heads.errors import DamagedFileError, DamagedFileWarning, ResultError
from resilient_heads.files import leftovers, write_atomic

RECORD, GOLDEN, TRIALS, RESULT = "campaign.json", "golden.parquet", "trials", "result.parquet"


def read_record(path: Path) -> CampaignRecord:
    """Return the record of a folder; if it is lost or damaged, return its copy in the file of the result and warn.

    Raises:
        ResultError: The folder holds no campaign, or one of another version, or a file cannot be used.
    """
    try:
        values = stored_values(path)
    except DamagedFileError as damage:
        copy = read_record_copy(path / RESULT)
        if copy is None:
            raise ResultError(_lost(path, damage)) from damage
        values = parse_record(copy)
        note(f"{damage}. The record was read from {RESULT}; run the campaign's command again to repair the folder.")
    try:
        golden = read_golden(path / GOLDEN, sha256=values["golden_sha256"])
    except (DamagedFileError, FileNotFoundError) as error:
        reason = error if isinstance(error, DamagedFileError) else f"{path / GOLDEN} is missing"
        raise ResultError(f"{reason}; run the campaign's command again to repair it.") from error
    return _record_from(path, values, golden)


def write_record(path: Path, record: CampaignRecord) -> CampaignRecord:
    """Write the record and the golden run, or check that the folder holds the same campaign, and repair both files.

    The caller holds the folder's lock.

    Returns:
        The record as the folder has it.

    Raises:
        ResultError: The folder holds another campaign, or files of something else.
        OSError: The folder cannot be written.
    """
    for name in (RECORD, GOLDEN):
        unlink_leftovers(path / name)
    # Without trials nothing was lost: a campaign that was stopped before its first trial begins anew.
    trials = (path / RESULT).exists() or any((path / TRIALS).glob("[!.]*"))
    try:
        values = stored_values(path)
    except DamagedFileError as damage:
        values = _rewrite(path, record)
        if trials:
            note(f"{damage}. It was written again.")
    _require_same(path, values, record)
    try:
        read_golden(path / GOLDEN, sha256=record.golden.sha256)
    except (DamagedFileError, FileNotFoundError) as error:
        write_atomic(path / GOLDEN, encode_golden(record.golden))
        if trials:
            reason = error if isinstance(error, DamagedFileError) else f"{path / GOLDEN} is missing"
            note(f"{reason}. It was written again.")
    return _record_from(path, values, record.golden)


def stored_values(path: Path) -> dict[str, Any]:
    """Return the values of the record in a folder.

    Raises:
        DamagedFileError: The file is missing or damaged.
        ResultError: The file is not a record, or one of another version.
    """
    try:
        content = read_file(path / RECORD)
    except FileNotFoundError as error:
        raise DamagedFileError(f"{path / RECORD} is missing") from error
    try:
        return parse_record(content)
    except DamagedFileError as error:
        raise DamagedFileError(f"{path / RECORD} is damaged: {error}") from error
    except ResultError as error:
        raise ResultError(f"{path / RECORD} cannot be used: {error}.") from error


def note(message: str) -> None:
    """Warn about a file that was lost or damaged."""
    warnings.warn(DamagedFileWarning(message), stacklevel=3)


def unlink_leftovers(path: Path) -> None:
    """Remove half-written files beside a path."""
    for entry in leftovers(path):
        entry.unlink(missing_ok=True)


def _rewrite(path: Path, record: CampaignRecord) -> dict[str, Any]:
    """Write a lost record, from its copy if there is one, unless the folder has trials of another campaign."""
    copy = read_record_copy(path / RESULT)
    if copy is not None:
        _require_same(path, parse_record(copy), record)
    trials = path / TRIALS
    chunks = sorted(trials.glob("[!.]*")) if trials.is_dir() else []
    for file in [path / RESULT, *chunks]:
        try:
            read_trials(file, campaign=record.identity)
        except (DamagedFileError, FileNotFoundError):
            continue
    text = record.to_json() if copy is None else copy
    write_atomic(path / RECORD, text.encode())
    return parse_record(text)


def _require_same(path: Path, values: dict[str, Any], record: CampaignRecord) -> None:
    """Raise ResultError unless a folder's record is that of the campaign."""
    if different := differences(values, record.as_dict()):
        raise ResultError(
            f"{path} holds another campaign: {'; '.join(different)}. To continue that campaign, follow the advice "
            "in parentheses; for a new campaign, pass another folder."
        )


def _record_from(path: Path, values: dict[str, Any], golden: GoldenRun) -> CampaignRecord:
    """Return the record that has these values."""
    try:
        return CampaignRecord.from_dict(values, golden)
    except ResultError as error:
        raise ResultError(f"{path / RECORD} cannot be used: {error}.") from error


def _lost(path: Path, damage: DamagedFileError) -> str:
    """Return an error's message for a folder without a usable record."""
    if any((path / name).exists() for name in (RECORD, GOLDEN, TRIALS, RESULT)):
        return f"{damage}; run the campaign's command again to repair it."
    inside = sorted(entry.parent.name for entry in path.glob(f"*/{RECORD}"))
    advice = f" Did you mean {path / inside[0]}?" if inside else " Pass a folder that run_campaign or save wrote."
    return f"{path} does not hold a campaign: it has no {RECORD}.{advice}"
