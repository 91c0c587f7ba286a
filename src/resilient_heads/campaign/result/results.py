"""The result of a campaign: every trial, what it was run on, and its summaries."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from resilient_heads.campaign.figures.summary import (
    SCOPES,
    BitSummary,
    Scope,
    SiteSummary,
    scope_rows,
    summarize_bits,
    summarize_layers,
    summarize_scope,
)
from resilient_heads.campaign.golden.golden_run import GoldenRun
from resilient_heads.campaign.result.config import CampaignConfig, Protocol
from resilient_heads.campaign.result.record import CampaignRecord, parse
from resilient_heads.campaign.result.shards import Shard
from resilient_heads.campaign.result.store import RESULT
from resilient_heads.campaign.trials.columns import CampaignSite, Trials
from resilient_heads.campaign.trials.outcomes import Outcome
from resilient_heads.campaign.trials.parquet import decode
from resilient_heads.campaign.trials.trial_file import encode_trials, golden_from_text, golden_text, trials_from
from resilient_heads.errors import ArgumentError, ResultError
from resilient_heads.files import write_atomic
from resilient_heads.statistics.intervals import DEFAULT_LEVEL, Estimate, mean_interval, wilson
from resilient_heads.statistics.planning import bonferroni

_RECORD = "resilient_heads.record"
_GOLDEN = "resilient_heads.golden"


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A campaign in a few figures.

    Attributes:
        protocol: How flips were applied.
        level: Confidence level of all intervals.
        images: Number of images.
        eligible_images: Images that faults could strike.
        accuracy: Share of images that the fault-free model classifies correctly; Wilson interval.
        top2diff: Mean difference of the two largest softmax probabilities over all images, fault-free.
        trials: Number of trials.
        scopes: Name to figures; ``SCOPES`` says what each covers. A scope of
            which a site was left out is not among them.
    """

    protocol: Protocol
    level: float
    images: int
    eligible_images: int
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
        excluded: Sites that the campaign was told to leave out.
        uninjectable: Sites that no fault could be put into, and why.
        golden: The fault-free model's predictions.
        trials: A row each.
        shard: Which part of the campaign's trials these are; normally the whole.
    """

    config: CampaignConfig
    sites: tuple[CampaignSite, ...]
    excluded: tuple[CampaignSite, ...]
    uninjectable: dict[str, str]
    golden: GoldenRun
    trials: Trials
    shard: Shard = field(default_factory=Shard)

    def __post_init__(self) -> None:
        if not len(self.trials):
            raise ResultError("The campaign has no trials.")
        if len(np.unique(self.trials.site)) != len(self.sites) or self.trials.outcome.max() > max(Outcome):
            raise ResultError("The trials are incomplete: a trial has no outcome.")

    def __repr__(self) -> str:
        shape = f"{len(self.sites)} sites, {len(self.trials)} trials"
        part = "" if self.shard.is_whole else f", shard {self.shard.rank} of {self.shard.world_size}"
        return f"CampaignResult({self.config.model}, {self.config.protocol.name}, {shape}{part})"

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
            eligible_images=int(self.golden.eligible.sum()),
            accuracy=wilson(float(self.golden.correct.mean()), images, level=level),
            top2diff=mean_interval(self.golden.top2diff, level=level),
            trials=self.trials.outcome.size,
            scopes={name: self.scope(name, level=level) for name in SCOPES if self.covers(name)},
        )

    def covers(self, scope: str) -> bool:
        """Whether the campaign struck every site of one of :data:`~resilient_heads.campaign.figures.summary.SCOPES`."""
        return bool(scope_rows(self.sites, scope)) and not scope_rows(self.excluded, scope)

    def scope(self, name: str, *, level: float = DEFAULT_LEVEL) -> Scope:
        """Return the figures of one of :data:`~resilient_heads.campaign.figures.summary.SCOPES`.

        Raises:
            ArgumentError: There is no such scope.
            ResultError: The campaign left out some of its sites.
        """
        if name not in SCOPES:
            raise ArgumentError(f"No scope is named {name!r}; expected one of {', '.join(SCOPES)}.")
        rows = scope_rows(self.sites, name)
        if not self.covers(name):
            missing = [self.excluded[row].site.name for row in scope_rows(self.excluded, name)]
            raise ResultError(
                f"The campaign did not strike all of {name!r} ({SCOPES[name]}): {', '.join(missing) or 'nothing of it'}"
                " was left out. Run it without layers=, or read by_layer()."
            )
        sites = [self.sites[row] for row in rows]
        return summarize_scope(name, sites, self.trials.rows(rows), self.config.design, level=level)

    def by_layer(self, *, level: float = DEFAULT_LEVEL, simultaneous: bool = False) -> list[SiteSummary]:
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
            ArgumentError: A name that was not struck, or sites of different word widths.
        """
        names = [struck.site.name for struck in self.sites]
        unknown = [layer for layer in layers or () if layer not in names]
        if unknown or (layers is not None and not layers):
            raise ArgumentError(f"No struck site is named {unknown}; expected some of: {', '.join(names)}.")
        rows = [row for row, name in enumerate(names) if layers is None or name in layers]
        chosen = [self.sites[row] for row in rows]
        if len({struck.site.dtype for struck in chosen}) > 1:
            raise ArgumentError("The sites have different number formats; pass layers= of one format.")
        return summarize_bits(chosen, self.trials.rows(rows), self.config.design, level=level)

    @property
    def record(self) -> CampaignRecord:
        """All of it but the trials."""
        return CampaignRecord(
            config=self.config,
            sites=self.sites,
            excluded=self.excluded,
            uninjectable=self.uninjectable,
            golden=self.golden,
        )

    @classmethod
    def of(cls, record: CampaignRecord, trials: Trials, *, shard: Shard | None = None) -> Self:
        """Return the result of a campaign's trials."""
        return cls(
            config=record.config,
            sites=record.sites,
            excluded=record.excluded,
            uninjectable=record.uninjectable,
            golden=record.golden,
            trials=trials,
            shard=shard or Shard(),
        )

    def encode(self) -> memoryview:
        """Return the content of the file that :meth:`save` writes.

        Raises:
            ResultError: It is one shard of several.
            MissingExtraError: pyarrow is not installed.
        """
        if not self.shard.is_whole:
            raise ResultError(
                f"This is shard {self.shard.rank} of {self.shard.world_size}, not the campaign; when all have run, "
                "rh.merge_campaign(folder) gives the whole."
            )
        record = self.record
        metadata = {_RECORD: record.to_json(), _GOLDEN: golden_text(self.golden)}
        return encode_trials(self.trials, record.layers, metadata)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write all of it to one Parquet file, atomically: the trials as its columns, the rest in its metadata.

        Beside the columns of :class:`Trials` there is ``layer``, the site's name, and
        ``outcome`` is readable. Equal results give equal bytes with the same version of pyarrow.

        Raises:
            ResultError: It is one shard of several.
            MissingExtraError: pyarrow is not installed.
        """
        return write_atomic(path, self.encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what :meth:`save` wrote, or the result in the folder of a complete campaign.

        Raises:
            ResultError: The file is truncated, foreign, or damaged; or the folder's campaign is not complete.
            FileNotFoundError: There is no such file.
            MissingExtraError: pyarrow is not installed.
        """
        path = Path(path)
        if path.is_dir():
            path = path / RESULT
            if not path.exists():
                raise ResultError(
                    f"{path.parent} holds no complete campaign: there is no {RESULT} in it. Run the campaign's command "
                    "again, or rh.merge_campaign(folder) once all its processes are done."
                )
        content = path.read_bytes()
        try:
            columns, metadata = decode(content)
        except ResultError as error:
            raise ResultError(f"{path} is not a campaign result, or is truncated: {error}.") from error
        if _RECORD not in metadata:
            raise ResultError(f"{path} is not a campaign result: its metadata has no {_RECORD!r}.")
        try:
            values = parse(metadata[_RECORD])
            golden = golden_from_text(metadata.get(_GOLDEN, ""), values["golden_sha256"])
            record = CampaignRecord.from_dict(values, golden)
            trials = trials_from(columns, metadata, record.layers)
            if len(trials) and not 0 <= trials.image.min() <= trials.image.max() < len(golden.labels):
                raise ResultError("the golden run does not fit the trials")
            return cls.of(record, trials)
        except ResultError as error:
            raise ResultError(f"The campaign result {path} cannot be used: {error}.") from error
