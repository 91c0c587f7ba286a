"""By what two campaigns may differ and still be compared.

Each choice, each entry of a record and each column of a golden run stands in one of three tables: it must be equal, or
a comparison names the difference, or the difference is harmless for the reason that the table gives.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from resilient_heads.campaign.result.config import CampaignConfig
from resilient_heads.campaign.result.differences import DECISIVE_ENVIRONMENT
from resilient_heads.campaign.result.fault_record import as_record
from resilient_heads.campaign.result.results import CampaignResult
from resilient_heads.checks import instance_of
from resilient_heads.display import as_code, cut
from resilient_heads.errors import ArgumentError, ResultError

MUST_BE_EQUAL = {
    "record.data_sha256": "used different images; run both on the same data, in the same order",
    "config.protocol": "follow different protocols; compare campaigns of one protocol",
    "config.fault": "inject different faults; compare campaigns of one fault model, fault=",
    "record.calibration_sha256": (
        "took their ranges from different images; calibrate both on the same data, in the same order"
    ),
}
"""What decides the question that a campaign answers."""

NAMED = {
    "config.until": "a campaign that stops early prefers narrow intervals",
    "record.sites": "a mean over other sites, or over sites of another size, is another figure",
    "record.uninjectable": "no fault was injected into these tensors",
    "record.coverage": "the sites cover another part of the model",
    **{f"environment.{name}": "it can change the last bits of logits" for name in DECISIVE_ENVIRONMENT},
    "golden.eligible": "each model's rates are over the images that it classifies correctly",
}
"""What leaves the question as it is and may change the answer."""

HARMLESS = {
    "config.design": "with their weights, the trials of every design estimate the same figures",
    "config.seed": "the intervals include what the draws decide by chance",
    "config.layers": "the sites are compared",
    "config.modules": "the sites are compared",
    "config.batch_size": "it changes no draw, and golden and faulty runs share a batch",
    "config.chunk_size": "it changes no trial",
    "config.engine": "both engines give the same bits",
    "config.memory_limit": "it changes no trial",
    "record.config": "its fields are compared",
    "record.model": "it is what a comparison is about",
    "record.model_sha256": "it is what a comparison is about",
    "record.environment": "its entries are compared",
    "record.excluded": "a scope is compared only if both campaigns injected into all of its sites",
    "record.golden": "its columns are compared",
    "environment.python": "it computes no logits",
    "environment.numpy": "it draws no fault and computes no logits",
    "golden.labels": "data_sha256 is the digest of images and labels",
    "golden.predicted": "accuracy_gain compares them",
    "golden.loss": "delta losses are relative to each model's own",
    "golden.top2diff": "top2diff_gain compares them",
}
"""What changes no answer, each with the reason."""


def require_comparable(baseline: CampaignResult, candidate: CampaignResult) -> None:
    """Raise an error unless two results answer the same question.

    Raises:
        ArgumentError: An argument is no result.
        ResultError: The results differ in what must be equal, or one is a shard.
    """
    for name, result in (("baseline", baseline), ("candidate", candidate)):
        _check_result(name, result)
    for entry, sentence in MUST_BE_EQUAL.items():
        before, after = (_value(result, entry) for result in (baseline, candidate))
        if before != after:
            raise ResultError(f"The two campaigns {sentence}. {_DETAILS[entry](baseline, candidate)}")


def differences_to_name(baseline: CampaignResult, candidate: CampaignResult) -> tuple[str, ...]:
    """Return a sentence for each difference that may change an answer, and one if there is no difference at all."""
    if baseline.record.identity == candidate.record.identity:
        return ("Both results are of the same campaign: same model, data, choices and seed.",)
    notes = []
    for entry, consequence in NAMED.items():
        before, after = (_value(result, entry) for result in (baseline, candidate))
        if before != after:
            shown = _SHOWN.get(entry, _plain)
            first, second = shown(before, after), shown(after, before)
            notes.append(f"{entry.partition('.')[2]}: baseline {first}, candidate {second}; {consequence}.")
    return tuple(notes)


def _check_result(name: str, result: object) -> None:
    """Raise ArgumentError unless an argument is a whole campaign's result."""
    if isinstance(result, str) or hasattr(result, "__fspath__"):
        raise ArgumentError(
            f"{name} must be a CampaignResult, found a path; pass rh.CampaignResult.load({str(result)!r})."
        )
    found = instance_of(name, result, CampaignResult, example='rh.CampaignResult.load("folder")')
    if not found.shard.is_whole:
        raise ResultError(
            f"{name} is shard {found.shard.rank} of {found.shard.world_size}, a part of a campaign; when all shards "
            "have run, pass rh.merge_campaign(folder)."
        )


def _value(result: CampaignResult, entry: str) -> Any:
    """Return an entry of a result as a value that can be compared."""
    kind, _, name = entry.partition(".")
    if kind == "config":
        return _choice(result.config, name)
    if kind == "environment":
        return result.record.environment.get(name)
    if kind == "golden":
        return result.golden.columns[name].tolist()
    if name == "sites":
        return {site.name: (site.site.neurons, site.site.word_bits) for site in result.sites}
    return getattr(result.record, name, None)


def _choice(config: CampaignConfig, name: str) -> Any:
    # As a record, because a fault that sets NaN differs from itself.
    return str(as_record(config.fault)) if name == "fault" else getattr(config, name)


def _plain(value: Any, _other: Any) -> str:
    return cut(str(value), 60)


def _keys(value: dict[str, Any], other: dict[str, Any]) -> str:
    """Return what only one of two dictionaries has."""
    only_here = [name for name, content in value.items() if other.get(name) != content]
    return f"{len(value)} ({cut(', '.join(only_here), 60) or 'none'}{' only here' if only_here else ' of its own'})"


def _count(value: list[bool], _other: list[bool]) -> str:
    return f"{sum(value):,} of {len(value):,} images"


_SHOWN: dict[str, Callable[[Any, Any], str]] = {
    "record.sites": _keys,
    "record.uninjectable": _keys,
    "golden.eligible": _count,
}


def _data_details(baseline: CampaignResult, candidate: CampaignResult) -> str:
    """Say what is known about how the data differ."""
    first, second = baseline.golden.labels, candidate.golden.labels
    if len(first) != len(second):
        return f"The baseline has {len(first):,} images, the candidate {len(second):,}."
    if np.array_equal(first, second):
        return "The labels are equal, so look at the preprocessing of the images."
    if np.array_equal(np.sort(first), np.sort(second)):
        return "The labels are the same in another order; pass a loader with shuffle=False."
    return "The labels differ too."


def _choices_details(name: str) -> Callable[[CampaignResult, CampaignResult], str]:
    def details(baseline: CampaignResult, candidate: CampaignResult) -> str:
        first, second = (as_code(getattr(result.config, name)) for result in (baseline, candidate))
        return f"The baseline has {first}, the candidate {second}."

    return details


_DETAILS = {
    "record.data_sha256": _data_details,
    "config.protocol": _choices_details("protocol"),
    "config.fault": _choices_details("fault"),
    "record.calibration_sha256": lambda *_: "The digests of the calibration images differ.",
}
