"""What a campaign is, without its trials: enough to repeat each of them, and to know another campaign from it."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Self

import torch

from resilient_heads.campaign.design.plan import InjectionPlan, plan_trials
from resilient_heads.campaign.golden.golden_run import GoldenRun
from resilient_heads.campaign.result.config import CampaignConfig
from resilient_heads.campaign.trials.columns import CampaignSite
from resilient_heads.campaign.trials.parquet import digest
from resilient_heads.campaign.trials.trial_file import golden_columns
from resilient_heads.errors import ResultError
from resilient_heads.injection.sites.site import Site

FORMAT = "resilient_heads.campaign/6"
_DECISIVE = ("resilient_heads", "torch", "device", "cpu", "threads")
"""Entries of the environment that may change the last bit of a result, so that one campaign has one of each."""

_ADVICE = {
    "seed": "pass seed={then}, or --seed {then}",
    "trials_per_site": "pass trials_per_site={then}, or --trials-per-site {then}",
    "design": "pass the same design=",
    "fault": "pass the same fault=",
    "until": "pass the same until=, or --until",
    "batch_size": "pass batch_size={then}, or --batch-size {then}",
    "chunk_size": "pass chunk_size={then}, or --chunk-size {then}",
    "model": "pass the same model",
    "model_sha256": "load the same weights",
    "data_sha256": "pass the same images and labels, in the same order",
    "calibration_sha256": "pass the same calibration images, in the same order",
    "resilient_heads": "install that version",
    "torch": "install that version",
    "device": "run on the same device",
    "cpu": "run on a processor with the same vector instructions",
    "threads": "set OMP_NUM_THREADS={then}",
    "golden_sha256": "the model computes something else on the same images; run on the same kind of machine",
    "protocol": "pass the same protocol",
    "sites": "pass the same layers and the same model",
    "excluded": "pass the same layers and the same model",
    "uninjectable": "pass the same model",
}
_CAUSES = {"model", "model_sha256", "data_sha256", "torch", "device", "cpu", "threads", "batch_size"}
_CONSEQUENCES = {
    "golden_sha256": _CAUSES | {"protocol"},
    "sites": _CAUSES | {"calibration_sha256", "protocol"},
    "excluded": _CAUSES | {"sites"},
    "uninjectable": _CAUSES,
    "calibration_sha256": {"protocol"},
}
"""What differs anyway once one of these differs, and need not be told beside it."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class CampaignRecord:
    """Everything of a campaign but its trials.

    Attributes:
        config: What was run, on what.
        sites: The L struck sites, in the order of execution.
        excluded: Sites that the campaign was told to leave out.
        uninjectable: Sites that no fault could be put into, and why.
        golden: The fault-free model's predictions.
    """

    config: CampaignConfig
    sites: tuple[CampaignSite, ...]
    excluded: tuple[CampaignSite, ...]
    uninjectable: dict[str, str]
    golden: GoldenRun

    @property
    def plan(self) -> InjectionPlan:
        """Which trials the campaign runs."""
        return plan_trials(self.config.design, self.sites, seed=self.config.seed, fault=self.config.fault)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the struck sites."""
        return tuple(struck.site.name for struck in self.sites)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-able values: all but the golden run, of which the digest."""
        return {
            "format": FORMAT,
            "config": self.config.as_dict(),
            "sites": [_site_record(struck) for struck in self.sites],
            "excluded": [_site_record(struck) for struck in self.excluded],
            "uninjectable": self.uninjectable,
            "golden_sha256": digest(golden_columns(self.golden)),
        }

    def to_json(self) -> str:
        """Return :meth:`as_dict` as text; equal records give equal text."""
        return json.dumps(self.as_dict(), sort_keys=True, indent=1) + "\n"

    @property
    def identity(self) -> str:
        """The sha256 of all that two parts of one campaign have in common."""
        return hashlib.sha256(json.dumps(_comparable(self.as_dict()), sort_keys=True).encode()).hexdigest()

    @classmethod
    def from_dict(cls, content: dict[str, Any], golden: GoldenRun) -> Self:
        """Undo :meth:`as_dict`.

        Raises:
            ResultError: It is something else.
        """
        try:
            config = CampaignConfig.from_dict(content["config"])
            sites, excluded = (tuple(_site_from(site) for site in content[kind]) for kind in ("sites", "excluded"))
            uninjectable = dict(content["uninjectable"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ResultError(f"the campaign's record is damaged: {error!r}") from error
        return cls(config=config, sites=sites, excluded=excluded, uninjectable=uninjectable, golden=golden)


def parse(text: str | bytes) -> dict[str, Any]:
    """Return a record's values before their golden run is known.

    Raises:
        ResultError: The text is no record, or one of another version.
    """
    try:
        content = json.loads(text)
        found = content["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ResultError("no record of a campaign") from error
    if found != FORMAT:
        raise ResultError(f"its format is {found!r}; expected {FORMAT!r}")
    config = content.get("config")
    if not isinstance(content.get("golden_sha256"), str) or not isinstance(config, dict):
        raise ResultError("the campaign's record is damaged: it has no config or names no golden run")
    if not isinstance(config.get("environment"), dict):
        raise ResultError("the campaign's record is damaged: it has no environment")
    return dict(content)


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Say how one campaign's record differs from another's, and what to do about it; nothing where they are one."""
    first, second = _flat(_comparable(then)), _flat(_comparable(now))
    differing = [name for name in sorted({*first, *second}) if first.get(name) != second.get(name)]
    found = []
    for name in differing:
        if _CONSEQUENCES.get(name, set()) & set(differing):
            continue
        advice = _ADVICE.get(name, f"pass {name}={{then}}").format(then=_short(first.get(name)))
        found.append(f"{name} is {_short(first.get(name))} there and {_short(second.get(name))} now ({advice})")
    return found


def _comparable(content: dict[str, Any]) -> dict[str, Any]:
    """Return a record without the entries of the environment that cannot change a result."""
    config = dict(content["config"])
    config["environment"] = {name: config["environment"].get(name) for name in _DECISIVE}
    return {**content, "config": config}


def _flat(content: dict[str, Any]) -> dict[str, Any]:
    """Return the record's entries by the names that a user knows."""
    config = dict(content["config"])
    environment = config.pop("environment")
    design = config.pop("design")
    if design.get("kind") == "uniform":
        config["trials_per_site"] = design["trials_per_site"]
    else:
        config["design"] = design
    rest = {name: value for name, value in content.items() if name != "config"}
    return {**rest, **config, **environment}


def _short(value: Any) -> str:
    """Return a value as an error shows it."""
    if isinstance(value, list):
        names = [entry.get("name", "?") if isinstance(entry, dict) else str(entry) for entry in value]
        shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        return f"{len(names)} ({shown}), sha256 {hashlib.sha256(json.dumps(value).encode()).hexdigest()[:8]}"
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True)
    text = str(value)
    return text[:12] + "..." if len(text) == 64 else text


def _site_record(struck: CampaignSite) -> dict[str, Any]:
    """Return JSON-able values."""
    record = dataclasses.asdict(struck.site)
    return {
        **record,
        "name": struck.site.name,
        "shape": list(struck.site.shape),
        "dtype": str(struck.site.dtype).removeprefix("torch."),
        "range_limit": struck.range_limit,
        "in_classifier": struck.in_classifier,
    }


def _site_from(record: dict[str, Any]) -> CampaignSite:
    """Undo :func:`_site_record`."""
    fields = {name: value for name, value in record.items() if name not in ("name", "range_limit", "in_classifier")}
    dtype = getattr(torch, record["dtype"])
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{record['dtype']} is no dtype")
    site = Site(**{**fields, "dtype": dtype, "shape": tuple(record["shape"])})
    return CampaignSite(site, record["range_limit"], record["in_classifier"])
