"""What determines a campaign's trials, without the trials: enough to repeat each of them."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Self

import torch

from resilient_heads.campaign.design.plan import InjectionPlan, plan_trials
from resilient_heads.campaign.golden.golden_run import GoldenRun
from resilient_heads.campaign.result.config import CampaignConfig
from resilient_heads.campaign.result.differences import decisive
from resilient_heads.campaign.trials.columns import CampaignSite
from resilient_heads.errors import ResultError
from resilient_heads.injection.sites.coverage import Coverage
from resilient_heads.injection.sites.site import Site

FORMAT = "resilient_heads.campaign/6"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class CampaignRecord:
    """What you chose for a campaign, and what the library observed before the first trial.

    Attributes:
        config: Your choices. The design has the number of trials in each stratum.
        model: Class name of the model.
        model_sha256: Digest of the model's state dict.
        data_sha256: Digest of images and labels.
        calibration_sha256: Digest of the images that gave the ranges; empty without a range detector.
        environment: Versions, device and threads.
        sites: The L sites with injections, in the order of execution.
        excluded: Sites that ``layers=`` left out.
        uninjectable: Tensors that cannot be fault sites, with the reason.
        coverage: How much of the model's computation the sites hold, those of ``excluded`` included.
        golden: The predictions of the fault-free model.
    """

    config: CampaignConfig
    model: str
    model_sha256: str
    data_sha256: str
    calibration_sha256: str
    environment: dict[str, str]
    sites: tuple[CampaignSite, ...]
    excluded: tuple[CampaignSite, ...]
    uninjectable: dict[str, str]
    coverage: Coverage
    golden: GoldenRun

    @property
    def plan(self) -> InjectionPlan:
        """The trials of the campaign."""
        return plan_trials(self.config.design, self.sites, seed=self.config.seed, fault=self.config.fault)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the sites."""
        return tuple(site.name for site in self.sites)

    @property
    def num_chunks(self) -> int:
        """Number of chunks of the whole design."""
        return -(-max(self.plan.counts) // self.config.trials_per_chunk)

    def chunk_bounds(self, chunk: int) -> tuple[int, int]:
        """Return the number of a chunk's first trial at each site, and the number after its last."""
        size = self.config.trials_per_chunk
        return chunk * size, min((chunk + 1) * size, max(self.plan.counts))

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-able values, with the digest of the golden run in place of the golden run."""
        return {
            "format": FORMAT,
            "config": self.config.as_dict(),
            "model": self.model,
            "model_sha256": self.model_sha256,
            "data_sha256": self.data_sha256,
            "calibration_sha256": self.calibration_sha256,
            "environment": self.environment,
            "sites": [_site_as_dict(site) for site in self.sites],
            "excluded": [_site_as_dict(site) for site in self.excluded],
            "uninjectable": self.uninjectable,
            "coverage": self.coverage.as_dict(),
            "golden_sha256": self.golden.sha256,
        }

    def to_json(self) -> str:
        """Return :meth:`as_dict` as text; equal records give equal text."""
        return json.dumps(self.as_dict(), sort_keys=True, indent=1) + "\n"

    @property
    def identity(self) -> str:
        """The sha256 of everything that all parts of one campaign have in common."""
        return hashlib.sha256(json.dumps(decisive(self.as_dict()), sort_keys=True).encode()).hexdigest()

    @classmethod
    def from_dict(cls, content: dict[str, Any], golden: GoldenRun) -> Self:
        """Undo :meth:`as_dict`.

        Raises:
            ResultError: The content is not that of a record.
        """
        try:
            values = {name: value for name, value in content.items() if name not in ("format", "golden_sha256")}
            values["config"] = CampaignConfig.from_dict(content["config"])
            values["coverage"] = Coverage.from_dict(content["coverage"])
            for kind in ("sites", "excluded"):
                values[kind] = tuple(_site_from(site) for site in content[kind])
            return cls(**values, golden=golden)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ResultError(f"the campaign's record is damaged: {error!r}") from error


def parse_record(text: str | bytes) -> dict[str, Any]:
    """Return the values in a record's JSON, of which only the format and the outermost types are checked.

    Raises:
        ResultError: The text is not a record, or a record of another version.
    """
    try:
        content = json.loads(text)
        found = content["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ResultError("it is not the record of a campaign") from error
    if found != FORMAT:
        raise ResultError(
            f"its format is {found!r}, and this version of the library reads {FORMAT!r}; run the campaign again, or "
            "install the version that wrote it"
        )
    for name, kind in (("config", dict), ("environment", dict), ("golden_sha256", str)):
        if not isinstance(content.get(name), kind):
            raise ResultError(f"the campaign's record is damaged: it has no {name}")
    return dict(content)


def _site_as_dict(site: CampaignSite) -> dict[str, Any]:
    """Return JSON-able values."""
    return {
        "name": site.name,
        **dataclasses.asdict(site.site),
        "shape": list(site.site.shape),
        "path": list(site.site.path),
        "dtype": str(site.site.dtype).removeprefix("torch."),
        "range_limit": site.range_limit,
        "in_classifier": site.in_classifier,
    }


def _site_from(content: dict[str, Any]) -> CampaignSite:
    """Undo :func:`_site_as_dict`."""
    fields = {name: value for name, value in content.items() if name not in ("name", "range_limit", "in_classifier")}
    dtype = getattr(torch, content["dtype"])
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{content['dtype']} is not a dtype")
    site = Site(**{**fields, "dtype": dtype, "shape": tuple(content["shape"]), "path": tuple(content["path"])})
    return CampaignSite(site, content["range_limit"], content["in_classifier"])
