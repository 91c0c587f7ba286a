"""Trials and golden runs as Parquet: the numbers of :class:`Trials`, with sites and outcomes readable by name."""

import base64
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from resilient_heads.campaign.golden.golden_run import GoldenRun
from resilient_heads.campaign.trials.columns import COLUMNS, Trials
from resilient_heads.campaign.trials.outcomes import Outcome
from resilient_heads.campaign.trials.parquet import Array, Named, decode, digest, encode
from resilient_heads.errors import ResultError

LAYER = "layer"
"""Name of the column that holds the sites' names."""

_DIGEST = "resilient_heads.sha256"
_OUTCOMES = [outcome.name.lower() for outcome in Outcome]
_GOLDEN = {
    "labels": np.int64,
    "predicted": np.int64,
    "loss": np.float64,
    "top2diff": np.float64,
    "eligible": np.bool_,
}


def encode_trials(trials: Trials, layers: Sequence[str], metadata: Mapping[str, str]) -> memoryview:
    """Return a Parquet file of trials.

    Args:
        trials: A row each.
        layers: Names of the campaign's sites.
        metadata: What else the file says.
    """
    columns: dict[str, Array | Named] = {}
    for name, column in trials.columns.items():
        columns[name] = Named(column, _OUTCOMES) if name == "outcome" else column
        if name == "site":
            columns[LAYER] = Named(column, layers)
    return encode(columns, {**metadata, _DIGEST: digest(trials.columns)})


def trials_from(columns: Mapping[str, Array | Named], metadata: Mapping[str, str], layers: Sequence[str]) -> Trials:
    """Undo :func:`encode_trials` on what :func:`~resilient_heads.campaign.trials.parquet.decode` gave.

    Args:
        columns: Of the file.
        metadata: Of the file.
        layers: Names that the sites must have.

    Raises:
        ResultError: The trials are not those that were written.
    """
    plain: dict[str, Array] = {}
    for name, kind in COLUMNS.items():
        column = columns.get(name)
        if name == "outcome" and isinstance(column, Named) and set(column.names) <= set(_OUTCOMES):
            codes = np.array([_OUTCOMES.index(known) for known in column.names], dtype=np.uint8)
            column = codes[column.codes.astype(np.int64)]
        if not isinstance(column, np.ndarray) or column.dtype != kind:
            raise ResultError(f"the column {name} is missing or of the wrong type")
        plain[name] = column
    if digest(plain) != metadata.get(_DIGEST):
        raise ResultError("the trials are not those that were written: their sha256 differs")
    trials = Trials(**plain)  # type: ignore[arg-type]
    if len(trials) and not 0 <= trials.site.min() <= trials.site.max() < len(layers):
        raise ResultError("a trial belongs to no site")
    return trials


def golden_columns(golden: GoldenRun) -> dict[str, Array]:
    """Return a golden run's columns by name."""
    return {field.name: getattr(golden, field.name) for field in dataclasses.fields(GoldenRun)}


def encode_golden(golden: GoldenRun) -> memoryview:
    """Return a Parquet file of a golden run, a row for each image."""
    return encode(golden_columns(golden), {})


def decode_golden(content: bytes, sha256: str) -> GoldenRun:
    """Undo :func:`encode_golden`.

    Raises:
        ResultError: The file is damaged, or is another golden run than the digest says.
    """
    columns, _ = decode(content)
    plain = {name: column for name, column in columns.items() if isinstance(column, np.ndarray)}
    if {name: column.dtype for name, column in plain.items()} != _GOLDEN or digest(plain) != sha256:
        raise ResultError("the golden run is not the one that was written")
    return GoldenRun(**plain)  # type: ignore[arg-type]


def golden_text(golden: GoldenRun) -> str:
    """Return a golden run as text, for a file's metadata: base64 of a Parquet file."""
    return base64.b64encode(encode_golden(golden)).decode()


def golden_from_text(text: str, sha256: str) -> GoldenRun:
    """Undo :func:`golden_text`.

    Raises:
        ResultError: It is damaged.
    """
    try:
        content = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ResultError("the golden run is damaged") from error
    return decode_golden(content, sha256)
