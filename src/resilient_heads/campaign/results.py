"""The result of a campaign: every trial, what it was run on, and its summaries."""

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from resilient_heads.campaign.config import CampaignConfig, Protocol
from resilient_heads.campaign.golden import GoldenRun
from resilient_heads.campaign.outcomes import Outcome
from resilient_heads.campaign.summary import (
    SCOPES,
    BitSummary,
    LayerSummary,
    Scope,
    scope_rows,
    summarize_bits,
    summarize_layers,
    summarize_scope,
)
from resilient_heads.campaign.trials import COLUMNS, StruckSite, Trials
from resilient_heads.errors import ResultError
from resilient_heads.files import write_atomic
from resilient_heads.injection.sites import Site
from resilient_heads.metrics.intervals import DEFAULT_LEVEL, Estimate, mean_interval, wilson
from resilient_heads.metrics.planning import bonferroni

_FORMAT = "resilient_heads.campaign/2"
_RECORD = "resilient_heads"


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A campaign in a few figures.

    Attributes:
        protocol: How flips were applied.
        level: Confidence level of all intervals.
        images: Number of images.
        struck_images: Images that faults could strike.
        accuracy: Share of images that the fault-free model classifies correctly; Wilson interval.
        top2diff: Mean difference of the two largest softmax probabilities over all images, fault-free.
        trials: Number of trials.
        scopes: Name to figures; :data:`~resilient_heads.campaign.summary.SCOPES` says what each covers. A scope of
            which a site was left out is not among them.
    """

    protocol: Protocol
    level: float
    images: int
    struck_images: int
    accuracy: Estimate
    top2diff: Estimate
    trials: int
    scopes: dict[str, Scope]

    @property
    def last(self) -> Scope:
        """The classifier's layers."""
        return self.scopes["last"]

    @property
    def network(self) -> Scope:
        """All layers."""
        return self.scopes["network"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class CampaignResult:
    """Every trial of a campaign.

    Attributes:
        config: What was run, on what.
        sites: The L struck sites, in the order of execution.
        unstruck: Sites that the campaign was told to leave out.
        skipped: Sites that no fault could be put into, and why.
        golden: The fault-free model's predictions.
        trials: A row each.
    """

    config: CampaignConfig
    sites: tuple[StruckSite, ...]
    unstruck: tuple[StruckSite, ...]
    skipped: dict[str, str]
    golden: GoldenRun
    trials: Trials

    def __post_init__(self) -> None:
        if len(np.unique(self.trials.site)) != len(self.sites) or self.trials.outcome.max() > max(Outcome):
            raise ResultError("The trials are incomplete: a trial has no outcome.")

    def __repr__(self) -> str:
        shape = f"{len(self.sites)} sites, {len(self.trials)} trials"
        return f"CampaignResult({self.config.model}, {self.config.protocol.name}, {shape})"

    def summary(self, *, level: float = DEFAULT_LEVEL) -> Summary:
        """Return accuracy, margins, and the figures of the classifier and of the network.

        Args:
            level: Confidence level of every interval.
        """
        images = len(self.golden.labels)
        return Summary(
            protocol=self.config.protocol,
            level=level,
            images=images,
            struck_images=int(self.golden.eligible.sum()),
            accuracy=wilson(float(self.golden.correct.mean()), images, level=level),
            top2diff=mean_interval(self.golden.top2diff, level=level),
            trials=self.trials.outcome.size,
            scopes={name: self.scope(name, level=level) for name in SCOPES if self.covers(name)},
        )

    def covers(self, scope: str) -> bool:
        """Whether the campaign struck every site of one of :data:`~resilient_heads.campaign.summary.SCOPES`."""
        return bool(scope_rows(self.sites, scope)) and not scope_rows(self.unstruck, scope)

    def scope(self, name: str, *, level: float = DEFAULT_LEVEL) -> Scope:
        """Return the figures of one of :data:`~resilient_heads.campaign.summary.SCOPES`.

        Raises:
            ResultError: There is no such scope, or the campaign left out some of its sites.
        """
        if name not in SCOPES:
            raise ResultError(f"No scope is named {name!r}; expected one of {', '.join(SCOPES)}.")
        rows = scope_rows(self.sites, name)
        if not self.covers(name):
            missing = [self.unstruck[row].site.name for row in scope_rows(self.unstruck, name)]
            raise ResultError(
                f"The campaign did not strike all of {name!r} ({SCOPES[name]}): {', '.join(missing) or 'nothing of it'}"
                " was left out. Run it without layers=, or read by_layer()."
            )
        sites = [self.sites[row] for row in rows]
        return summarize_scope(name, sites, self.trials.rows(rows), self.config.design, level=level)

    def by_layer(self, *, level: float = DEFAULT_LEVEL, simultaneous: bool = False) -> list[LayerSummary]:
        """Return the figures of each site, in the order of execution.

        Args:
            level: Confidence level of each interval.
            simultaneous: Widen the intervals so that those of one figure hold for all sites together with probability
                ``level`` (Bonferroni): read it so to name the worst layer.
        """
        each = bonferroni(level, len(self.sites)) if simultaneous else level
        return summarize_layers(self.sites, self.trials, self.config.design, level=each)

    def by_bit(self, layers: Sequence[str] | None = None, *, level: float = DEFAULT_LEVEL) -> list[BitSummary]:
        """Return the rates of each bit position, lowest bit first.

        Args:
            layers: Names of sites; None takes all.
            level: Confidence level.

        Raises:
            ResultError: A name that was not struck, or sites of different word widths.
        """
        names = [struck.site.name for struck in self.sites]
        unknown = [layer for layer in layers or () if layer not in names]
        if unknown or (layers is not None and not layers):
            raise ResultError(f"No struck site is named {unknown}; expected some of: {', '.join(names)}.")
        rows = [row for row, name in enumerate(names) if layers is None or name in layers]
        chosen = [self.sites[row] for row in rows]
        if len({struck.site.dtype for struck in chosen}) > 1:
            raise ResultError("The sites have different number formats; pass layers= of one format.")
        return summarize_bits(chosen, self.trials.rows(rows), self.config.design, level=level)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write all of it to one safetensors file, atomically: arrays for the trials, one JSON record for the rest."""
        record = {
            "format": _FORMAT,
            "config": self.config.as_dict(),
            "sites": [_site_record(struck) for struck in self.sites],
            "unstruck": [_site_record(struck) for struck in self.unstruck],
            "skipped": self.skipped,
        }
        arrays = {f"trials.{name}": np.ascontiguousarray(column) for name, column in self.trials.columns.items()}
        for field in dataclasses.fields(GoldenRun):
            arrays[f"golden.{field.name}"] = np.ascontiguousarray(getattr(self.golden, field.name))
        return write_atomic(path, save_arrays(arrays, {_RECORD: json.dumps(record, sort_keys=True)}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            ResultError: The file is truncated, foreign, or damaged.
            FileNotFoundError: There is no such file.
        """
        content = Path(path).read_bytes()
        try:
            arrays = load_arrays(content)
            length = int.from_bytes(content[:8], "little")
            record = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][_RECORD])
            found = record["format"]
        except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ResultError(f"{path} is not a campaign result, or is truncated: {error}.") from error
        if found != _FORMAT:
            raise ResultError(f"{path} has the format {found!r}; expected {_FORMAT!r}.")
        try:
            sites, unstruck = (tuple(_site_from(site) for site in record[kind]) for kind in ("sites", "unstruck"))
            columns = {name: arrays[f"trials.{name}"] for name in COLUMNS}
            for name, kind in COLUMNS.items():
                if columns[name].dtype != kind or columns[name].shape != columns["outcome"].shape:
                    raise ValueError(f"the column {name} has the wrong type or shape")
            golden = GoldenRun(
                **{field.name: arrays[f"golden.{field.name}"] for field in dataclasses.fields(GoldenRun)}
            )
            lengths = {getattr(golden, field.name).shape for field in dataclasses.fields(GoldenRun)}
            if len(lengths) != 1 or columns["image"].max() >= len(golden.labels) or columns["image"].min() < 0:
                raise ValueError("the golden run does not fit the trials")
            return cls(
                config=CampaignConfig.from_dict(record["config"]),
                sites=sites,
                unstruck=unstruck,
                skipped=record["skipped"],
                golden=golden,
                trials=Trials(**columns),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ResultError(f"The campaign result {path} is damaged: {error}.") from error


def _site_record(struck: StruckSite) -> dict[str, Any]:
    """Return JSON-able values."""
    record = dataclasses.asdict(struck.site)
    return {
        **record,
        "dtype": str(struck.site.dtype).removeprefix("torch."),
        "limit": struck.limit,
        "is_last": struck.is_last,
    }


def _site_from(record: dict[str, Any]) -> StruckSite:
    """Undo :func:`_site_record`."""
    fields = {name: value for name, value in record.items() if name not in ("limit", "is_last")}
    dtype = getattr(torch, record["dtype"])
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{record['dtype']} is no dtype")
    site = Site(**{**fields, "dtype": dtype, "shape": tuple(record["shape"])})
    return StruckSite(site, record["limit"], record["is_last"])
