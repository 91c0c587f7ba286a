"""What determines a campaign's trials, without the trials: enough to repeat each of them."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from resilient_heads.campaign.design.plan import InjectionPlan, plan_trials
from resilient_heads.campaign.golden.golden_run import GoldenRun
from resilient_heads.campaign.result.config import CampaignConfig
from resilient_heads.campaign.result.differences import decisive
from resilient_heads.campaign.trials.columns import CampaignSite, Trials
from resilient_heads.campaign.trials.seal import BLANK, is_intact, seal
from resilient_heads.errors import DamagedFileError, ResultError
from resilient_heads.injection.sites.coverage import Coverage
from resilient_heads.injection.sites.site import Site

_KIND = "resilient_heads.campaign/"
FORMAT = _KIND + "7"
_MARK = b'\n "sha256": "'
"""What stands in front of the record's own digest: an entry of the outermost level, which no other text can imitate."""


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

    def trials_in(self, chunk: int) -> int:
        """Return the number of trials in a chunk."""
        start, stop = self.chunk_bounds(chunk)
        return sum(max(0, min(stop, count) - start) for count in self.plan.counts)

    def numbers(self, start: int, stop: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return the columns ``site`` and ``trial`` of trials ``start`` to ``stop - 1`` of all sites that have them."""
        of_sites = [np.arange(min(start, count), min(stop, count)) for count in self.plan.counts]
        sizes = [len(numbers) for numbers in of_sites]
        return np.repeat(np.arange(len(sizes), dtype=np.int32), sizes), np.concatenate(of_sites)

    def is_whole(self, trials: Trials) -> bool:
        """Whether these are all trials of the campaign: up to the end of the design, or of the stopping rule."""
        size, until = self.config.trials_per_chunk, self.config.until
        stop = -(-(int(trials.trial.max(initial=-1)) + 1) // size) * size
        site, number = self.numbers(0, stop)
        if not (stop and np.array_equal(trials.site, site) and np.array_equal(trials.trial, number)):
            return False
        plan = self.plan
        return stop >= max(plan.counts) or (
            until is not None and until.is_met(plan.sites, trials, plan.design, plan.fault)
        )

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
        """Return :meth:`as_dict` as text, with the digest of the text; equal records give equal text."""
        values = json.loads(json.dumps({**self.as_dict(), "sha256": BLANK}, sort_keys=True))
        # The format comes first, so that what is left of a damaged file can be recognised.
        text = json.dumps({"format": values.pop("format"), **values}, indent=1) + "\n"
        return bytes(seal(text.encode(), _MARK)).decode()

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
    """Return the values in the text of :meth:`CampaignRecord.to_json`.

    Raises:
        DamagedFileError: The text is truncated or was changed.
        ResultError: The text is not a record, or a record of another version.
    """
    content = text.encode() if isinstance(text, str) else text
    intact = is_intact(content, _MARK)
    try:
        values = dict(json.loads(content))
        found = str(values["format"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        start = f'{{\n "format": "{_KIND}'.encode()
        if _KIND.encode() in content or start.startswith(content.rstrip(b"\0")):  # a disk that fails leaves zeros
            raise DamagedFileError("it is truncated or damaged") from error
        raise ResultError("it is not the record of a campaign") from error
    if found != FORMAT and (intact or _MARK not in content):
        raise ResultError(
            f"its format is {found!r}, and this version of the library reads {FORMAT!r}; run the campaign again, or "
            "install the version that wrote it"
        )
    if not intact:
        raise DamagedFileError("it was edited or damaged: its sha256 differs from the one in the file")
    del values["sha256"]
    return values


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
