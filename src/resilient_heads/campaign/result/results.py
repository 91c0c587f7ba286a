"""The result of a campaign: its record, its trials, and their summaries."""

import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from resilient_heads.campaign.design.fault_space import SINGLE_FLIP
from resilient_heads.campaign.figures.scopes import SCOPES
from resilient_heads.campaign.figures.summary import (
    BitSummary,
    ScopeSummary,
    SiteSummary,
    summarize_bits,
    summarize_layers,
    summarize_scope,
)
from resilient_heads.campaign.golden.golden_run import GoldenRun
from resilient_heads.campaign.result.config import CampaignConfig
from resilient_heads.campaign.result.gather import load_trials
from resilient_heads.campaign.result.record import CampaignRecord
from resilient_heads.campaign.result.shards import Shard
from resilient_heads.campaign.result.store import CampaignFolder
from resilient_heads.campaign.result.summary import Summary
from resilient_heads.campaign.trials.columns import CampaignSite, Trials
from resilient_heads.campaign.trials.outcomes import Outcome
from resilient_heads.campaign.trials.table import trials_table
from resilient_heads.checks import one_of, strings
from resilient_heads.display import as_code, wrapped
from resilient_heads.errors import ArgumentError, ResultError
from resilient_heads.injection.sites.coverage import Coverage
from resilient_heads.statistics.intervals import DEFAULT_LEVEL, mean_interval, wilson
from resilient_heads.statistics.planning import bonferroni

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class CampaignResult:
    """The trials of a campaign, and everything needed to repeat them.

    Attributes:
        record: The choices, the model, the data, the environment, the sites and the golden run.
        trials: A row for each trial.
        shard: The part of the campaign to which the trials belong; by default the whole.

    .. code-block:: python

        result = rh.CampaignResult.load("run")
        result.summary().network.layer_averaged.sdc
        result.to_pandas().query("outcome == 'sdc'")
    """

    record: CampaignRecord
    trials: Trials
    shard: Shard = field(default_factory=Shard)

    def __post_init__(self) -> None:
        # A shard may hold no trial of a site, or none at all where other shards met the stopping rule.
        if self.shard.is_whole and not len(self.trials):
            raise ResultError("The campaign has no trials.")
        missing = self.shard.is_whole and len(np.unique(self.trials.site)) != len(self.sites)
        if missing or self.trials.outcome.max(initial=0) > max(Outcome):
            raise ResultError("The trials are incomplete: a site has no trials, or a trial has no outcome.")

    def __repr__(self) -> str:
        size = f"{len(self.sites)} sites, {len(self.trials)} trials"
        part = "" if self.shard.is_whole else f", shard {self.shard.rank} of {self.shard.world_size}"
        fault = "" if self.config.fault == SINGLE_FLIP else f", {as_code(self.config.fault)}"
        return wrapped(f"CampaignResult({self.record.model}, {self.config.protocol.name}{fault}, {size}{part})")

    def __str__(self) -> str:
        return f"{self!r}\n{self.summary()}" if self.shard.is_whole else repr(self)

    @property
    def config(self) -> CampaignConfig:
        """Your choices."""
        return self.record.config

    @property
    def sites(self) -> tuple[CampaignSite, ...]:
        """The sites with injections, in the order of execution."""
        return self.record.sites

    @property
    def excluded(self) -> tuple[CampaignSite, ...]:
        """The sites that ``layers=`` left out."""
        return self.record.excluded

    @property
    def uninjectable(self) -> dict[str, str]:
        """Tensors that cannot be fault sites, with the reason."""
        return self.record.uninjectable

    @property
    def coverage(self) -> Coverage:
        """How much of the model's computation the sites hold, those of ``excluded`` included."""
        return self.record.coverage

    @property
    def golden(self) -> GoldenRun:
        """The predictions of the fault-free model."""
        return self.record.golden

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
            trials=len(self.trials),
            coverage=self.coverage,
            scopes={name: self.scope(name, level=level) for name in SCOPES if self.covers(name)},
        )

    def covers(self, scope: str) -> bool:
        """Whether the campaign injected into every site of a scope; ``scope`` is a name in ``SCOPES``."""
        return bool(SCOPES[scope].rows(self.sites)) and not SCOPES[scope].rows(self.excluded)

    def scope(self, name: str, *, level: float = DEFAULT_LEVEL) -> ScopeSummary:
        """Return the figures of a scope.

        Args:
            name: A name in :data:`~resilient_heads.campaign.figures.scopes.SCOPES`.
            level: Confidence level of every interval.

        Raises:
            ArgumentError: No scope has this name.
            ResultError: The campaign left out a site of the scope.
        """
        scope = SCOPES[one_of("name", name, tuple(SCOPES))]
        if not self.covers(name):
            missing = [self.excluded[row].name for row in scope.rows(self.excluded)]
            raise ResultError(
                f"The campaign did not inject into all sites of {name!r} ({scope.description}); it left out "
                f"{', '.join(missing) or 'all of them'}. Run it without layers=, or call by_layer()."
            )
        rows = scope.rows(self.sites)
        chosen = [self.sites[row] for row in rows]
        part = "" if scope.classifier_only else self.coverage.part
        trials, config = self.trials.rows(rows), self.config
        return summarize_scope(name, chosen, trials, config.design, config.fault, level=level, part=part)

    def by_layer(self, *, level: float = DEFAULT_LEVEL, simultaneous: bool = False) -> list[SiteSummary]:
        """Return the figures of each site, in the order of execution.

        Args:
            level: Confidence level of each interval.
            simultaneous: Widen the intervals, so that the intervals of one figure are right for all sites together with
                probability ``level`` (Bonferroni). Use it to name the worst layer.
        """
        each = bonferroni(level, len(self.sites)) if simultaneous else level
        return summarize_layers(self.sites, self.trials, self.config.design, level=each)

    def by_bit(self, layers: Sequence[str] | None = None, *, level: float = DEFAULT_LEVEL) -> list[BitSummary]:
        """Return the rates of each bit position, lowest bit first.

        Args:
            layers: Names of sites; None takes all.
            level: Confidence level of every interval.

        Raises:
            ArgumentError: The campaign has no site of a name, the sites have different number formats, or the
                campaign's fault is not one bit of one value.
        """
        names = self.record.layers
        if layers is not None:
            strings("layers", layers, example='["fc"]')
        unknown = [layer for layer in layers or () if layer not in names]
        if unknown:
            raise ArgumentError(f"The campaign has no site named {unknown}; expected some of: {', '.join(names)}.")
        rows = [row for row, name in enumerate(names) if layers is None or name in layers]
        chosen = [self.sites[row] for row in rows]
        if self.config.fault.format is None and len({site.site.dtype for site in chosen}) > 1:
            raise ArgumentError("The sites have different number formats; pass layers= with sites of one format.")
        return summarize_bits(chosen, self.trials.rows(rows), self.config.design, self.config.fault, level=level)

    def to_pandas(self) -> "pandas.DataFrame":
        """Return a table with a row for each trial: the columns of ``Trials``, and ``layer``, the name of the site.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return trials_table(self.trials, self.record.layers)

    def to_dict(self, *, level: float = DEFAULT_LEVEL) -> dict[str, Any]:
        """Return choices, digests, environment, accuracy, scopes and layers as values for :func:`json.dumps`.

        A figure that is NaN or infinite becomes None, since JSON does not have these numbers.

        Args:
            level: Confidence level of every interval.
        """
        values = self.record.as_dict()
        content: dict[str, Any] = _json_able(
            {
                **{name: value for name, value in values.items() if name not in ("sites", "excluded")},
                "excluded": [site.name for site in self.excluded],
                **dataclasses.asdict(self.summary(level=level)),
                "layers": [dataclasses.asdict(layer) for layer in self.by_layer(level=level)],
            }
        )
        return content

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the result into a folder: ``campaign.json``, ``golden.parquet`` and ``result.parquet``.

        Equal results give equal bytes with the same version of pyarrow.

        Args:
            path: The folder; it is created if it does not exist.

        Raises:
            ResultError: The result is one shard of several or lacks trials, or the folder holds another campaign.
            StoreError: The folder cannot be written.
            MissingExtraError: pyarrow is not installed.
        """
        if not self.shard.is_whole:
            raise ResultError(
                f"This is shard {self.shard.rank} of {self.shard.world_size}, not the whole campaign; when all shards "
                "have run, rh.merge_campaign(folder) gives the whole."
            )
        if not self.record.is_whole(self.trials):
            raise ResultError(
                f"The result holds {len(self.trials)} trials, which are not all trials of the campaign in its record; "
                "save a part of them as a table: result.to_pandas().to_parquet(...)."
            )
        folder = CampaignFolder.create(path, self.record)
        folder.write_result(self.trials)
        return folder.path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a result from the folder that :meth:`save` or a complete campaign wrote.

        If a file is lost or damaged and the other files hold its content, the result is read from them, with a
        :class:`~resilient_heads.errors.DamagedFileWarning`.

        Raises:
            ArgumentError: ``path`` is not a path.
            ResultError: There is no such folder, or it holds no complete campaign, or a file is damaged or of another
                version.
            MissingExtraError: pyarrow is not installed.
        """
        folder = CampaignFolder.open(path)
        return cls(record=folder.record, trials=load_trials(folder))


def _json_able(value: Any) -> Any:
    """Return a value with lists in place of tuples, and None in place of NaN and infinity."""
    if isinstance(value, dict):
        return {name: _json_able(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_json_able(entry) for entry in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
