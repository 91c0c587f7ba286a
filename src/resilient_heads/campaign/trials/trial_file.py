"""Parquet files of trials and golden runs, in which readers see sites and outcomes by name."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from resilient_heads.campaign.golden.digests import columns_sha256
from resilient_heads.campaign.golden.golden_run import GoldenRun
from resilient_heads.campaign.trials.columns import COLUMNS, Trials
from resilient_heads.campaign.trials.outcomes import Outcome
from resilient_heads.campaign.trials.parquet import Array, Named, decode, encode
from resilient_heads.campaign.trials.seal import read_file
from resilient_heads.errors import DamagedFileError, ResultError

_LAYER = "layer"
_CAMPAIGN, _RECORD = "resilient_heads.campaign", "resilient_heads.record"
_OUTCOMES = [outcome.name.lower() for outcome in Outcome]


def encode_trials(trials: Trials, layers: Sequence[str], *, campaign: str, record: str | None = None) -> memoryview:
    """Return the content of a file of trials: the columns of ``Trials``, and ``layer``, the name of the site.

    Args:
        trials: The trials.
        layers: Names of the campaign's sites.
        campaign: Identity of the campaign, which :func:`read_trials` compares.
        record: The campaign's record, to keep a second copy of it; :func:`read_record_copy` returns it.
    """
    columns: dict[str, Array | Named] = {}
    for name, column in trials.columns.items():
        columns[name] = Named(column, _OUTCOMES) if name == "outcome" else column
        if name == "site":
            columns[_LAYER] = Named(column, layers)
    return encode(columns, {_CAMPAIGN: campaign, **({} if record is None else {_RECORD: record})})


def read_trials(path: Path, *, campaign: str) -> Trials:
    """Read a file that :func:`encode_trials` made; ``campaign`` is the same.

    Raises:
        FileNotFoundError: The file does not exist.
        DamagedFileError: The file is truncated or damaged.
        ResultError: The file is not a file of trials, or belongs to another campaign.
    """
    columns, metadata = _read(path)
    if metadata.get(_CAMPAIGN) != campaign:
        raise ResultError(
            f"{path} belongs to another campaign than its folder; move it away and run the campaign's command again."
        )
    plain: dict[str, Array] = {name: _plain(columns[name]).astype(kind) for name, kind in COLUMNS.items()}
    return Trials(**plain)  # type: ignore[arg-type]


def read_record_copy(path: Path) -> str | None:
    """Return the record in a file that :func:`encode_trials` made; None if there is none, or the file is damaged."""
    try:
        return _read(path)[1].get(_RECORD)
    except (FileNotFoundError, ResultError):
        return None


def encode_golden(golden: GoldenRun) -> memoryview:
    """Return the content of a file of a golden run, a row for each image."""
    return encode(golden.columns, {})


def read_golden(path: Path, *, sha256: str) -> GoldenRun:
    """Read a file that :func:`encode_golden` made.

    Args:
        path: The file.
        sha256: Digest of the golden run.

    Raises:
        FileNotFoundError: The file does not exist.
        DamagedFileError: The file is damaged.
        ResultError: The file is not of this library, or its golden run has another digest.
    """
    columns = _read(path)[0]
    plain = {name: column for name, column in columns.items() if isinstance(column, np.ndarray)}
    if columns_sha256(plain) != sha256:
        raise ResultError(
            f"{path} belongs to another campaign than its folder; move it away and run the campaign's command again."
        )
    return GoldenRun(**plain)  # type: ignore[arg-type]


def _read(path: Path) -> tuple[dict[str, Array | Named], dict[str, str]]:
    """Return the columns and the metadata of a file; the error names the file."""
    content = read_file(path)
    try:
        return decode(content)
    except DamagedFileError as error:
        raise DamagedFileError(f"{path} is damaged: {error}") from error
    except ResultError as error:
        raise ResultError(f"{path} {error}; move it away and run the campaign's command again.") from error


def _plain(column: Array | Named) -> Array:
    """Return outcomes as numbers, and other columns as they are."""
    if not isinstance(column, Named):
        return column
    codes = np.array([_OUTCOMES.index(known) for known in column.names], dtype=np.uint8)
    return codes[column.codes.astype(np.int64)]
