"""Parquet files of trials and golden runs, in which readers see sites and outcomes by name."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from resilient_heads.campaign.golden.digests import columns_sha256
from resilient_heads.campaign.golden.golden_run import GoldenRun
from resilient_heads.campaign.trials.columns import COLUMNS, Trials
from resilient_heads.campaign.trials.outcomes import Outcome
from resilient_heads.campaign.trials.parquet import MAGIC, Array, Named, decode, encode
from resilient_heads.errors import DamagedChunkError, ResultError

_LAYER = "layer"
_CAMPAIGN, _SHA256 = "resilient_heads.campaign", "resilient_heads.sha256"
_OUTCOMES = [outcome.name.lower() for outcome in Outcome]
_GOLDEN = {
    "labels": np.int64,
    "predicted": np.int64,
    "loss": np.float64,
    "top2diff": np.float64,
    "eligible": np.bool_,
}


def encode_trials(trials: Trials, layers: Sequence[str], *, campaign: str) -> memoryview:
    """Return the content of a file of trials: the columns of ``Trials``, and ``layer``, the name of the site.

    Args:
        trials: The trials.
        layers: Names of the campaign's sites.
        campaign: Identity of the campaign, which :func:`read_trials` compares.
    """
    columns: dict[str, Array | Named] = {}
    for name, column in trials.columns.items():
        columns[name] = Named(column, _OUTCOMES) if name == "outcome" else column
        if name == "site":
            columns[_LAYER] = Named(column, layers)
    return encode(columns, {_CAMPAIGN: campaign, _SHA256: columns_sha256(trials.columns)})


def read_trials(path: Path, layers: Sequence[str], *, campaign: str) -> Trials:
    """Read a file that :func:`encode_trials` made; the arguments are the same.

    Raises:
        FileNotFoundError: The file does not exist.
        DamagedChunkError: The file is truncated or damaged.
        ResultError: The file is not a file of trials, or belongs to another campaign.
    """
    content = path.read_bytes()
    if not (MAGIC.startswith(content[:4]) or content[:4] == bytes(4)):  # a disk that fails leaves zeros
        raise ResultError(f"{path} is not a Parquet file; move it away and run the campaign's command again.")
    try:
        columns, metadata = decode(content)
    except ResultError as error:
        raise DamagedChunkError(f"{path} is damaged ({error})") from error
    found = metadata.get(_CAMPAIGN)
    if found != campaign:
        reason = "is not a file of this library" if found is None else "belongs to another campaign than its folder"
        raise ResultError(f"{path} {reason}; move it away and run the campaign's command again.")
    try:
        return _checked(columns, metadata, len(layers))
    except ResultError as error:
        raise DamagedChunkError(f"{path} is damaged ({error})") from error


def _checked(columns: Mapping[str, Array | Named], metadata: Mapping[str, str], num_sites: int) -> Trials:
    """Return the trials in a file's columns; raise ResultError unless they are the ones that were written."""
    plain: dict[str, Array] = {}
    for name, kind in COLUMNS.items():
        column = columns.get(name)
        if name == "outcome" and isinstance(column, Named) and set(column.names) <= set(_OUTCOMES):
            codes = np.array([_OUTCOMES.index(known) for known in column.names], dtype=np.uint8)
            column = codes[column.codes.astype(np.int64)]
        if not isinstance(column, np.ndarray) or column.dtype != kind:
            raise ResultError(f"the column {name} is missing or of the wrong type")
        plain[name] = column
    if columns_sha256(plain) != metadata.get(_SHA256):
        raise ResultError("the sha256 of its trials differs from the one in the file")
    trials = Trials(**plain)  # type: ignore[arg-type]
    if len(trials) and not 0 <= trials.site.min() <= trials.site.max() < num_sites:
        raise ResultError("a trial belongs to no site")
    return trials


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
        ResultError: The file is damaged, or its golden run has another digest.
    """
    columns, _ = decode(path.read_bytes())
    plain = {name: column for name, column in columns.items() if isinstance(column, np.ndarray)}
    if {name: column.dtype for name, column in plain.items()} != _GOLDEN or columns_sha256(plain) != sha256:
        raise ResultError("the golden run is not the one that was written")
    return GoldenRun(**plain)  # type: ignore[arg-type]
