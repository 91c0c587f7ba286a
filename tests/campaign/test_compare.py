"""By what two campaigns may differ: refused, named, or harmless for a reason, and nothing is forgotten."""

import dataclasses
import math
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import resilient_heads as rh
from helpers.small_campaign import campaign, labelled, net
from resilient_heads.campaign.analysis.comparable import HARMLESS, MUST_BE_EQUAL, NAMED
from resilient_heads.campaign.golden.environment import environment_of
from resilient_heads.campaign.result import differences
from resilient_heads.campaign.result.record import CampaignRecord
from resilient_heads.errors import ArgumentError, ResultError

SAME = "Both results are of the same campaign: same model, data, choices and seed."
NANS = (math.nan, float("nan"))


@cache
def result(**choices: Any) -> rh.CampaignResult:
    return campaign(None, **{"trials_per_site": 40, "batch_size": 10, "chunk_size": 10, **choices})


def changed(found: rh.CampaignResult, **entries: Any) -> rh.CampaignResult:
    """Return a result whose record has other entries."""
    return replace(found, record=replace(found.record, **entries))


def test_every_field_is_compared_named_or_harmless() -> None:
    """A new choice, entry or column has to be put into one of the three tables."""
    expected = {
        *(f"config.{field.name}" for field in fields(rh.CampaignConfig)),
        *(f"record.{field.name}" for field in fields(CampaignRecord)),
        *(f"environment.{name}" for name in result().record.environment),
        *(f"golden.{field.name}" for field in fields(rh.campaign.GoldenRun)),
    }
    tables = [*MUST_BE_EQUAL, *NAMED, *HARMLESS]
    assert len(tables) == len(set(tables))
    assert expected - set(tables) == set()
    on_other_machines = {f"environment.{name}" for name in differences.DECISIVE_ENVIRONMENT}
    assert set(tables) - expected - on_other_machines == set()
    assert all({**MUST_BE_EQUAL, **NAMED, **HARMLESS}.values())


def test_a_resumed_campaign_has_advice_for_every_entry() -> None:
    decisive = differences.decisive(result().record.as_dict())
    assert set(decisive) - {"format"} <= set(differences._ENTRIES)
    unused = {"environment"} | set(environment_of(net())) - set(differences.DECISIVE_ENVIRONMENT)
    assert unused == {"environment", "python", "numpy"}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another order": (
        {"data": tuple(part.flip(0) for part in labelled())},
        "another order; .*shuffle=False",
    ),
    "other preprocessing": ({"data": (labelled()[0] * 0.999, labelled()[1])}, "labels are equal, so look at the prep"),
    "fewer images": ({"data": tuple(part[:9] for part in labelled())}, "baseline has 12 images, the candidate 9"),
    "another fault": (
        {"fault": rh.FaultModel(elements=rh.faults.AllElements())},
        r"inject different faults; .* baseline has FaultModel\(\), the candidate FaultModel\(elements=AllElements",
    ),
    "another effect": ({"fault": rh.FaultModel(effect=rh.faults.StuckAt(value=1))}, "inject different faults"),
    "another format": ({"fault": rh.FaultModel(format=rh.formats.AffineInteger())}, "inject different faults"),
    "a margin": (
        {"protocol": rh.Protocol(name="raw", min_top2diff=0.01)},
        r"follow different protocols; .* candidate Protocol\(name='raw', min_top2diff=0.01\)",
    ),
    "another protocol": ({"protocol": "goldeneye", "calibration": labelled()[0]}, "follow different protocols"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_campaigns_of_different_questions_are_not_compared(kind: str) -> None:
    choices, words = REFUSED[kind]
    other = campaign(None, trials_per_site=10, **choices)
    for pair in ((result(), other), (other, result())):
        with pytest.raises(ResultError) as refused:
            rh.compare(*pair)
    with pytest.raises(ResultError, match=words):
        rh.compare(result(), other)
    assert str(refused.value).startswith("The two campaigns ")


def test_a_fault_that_sets_nan_equals_itself() -> None:
    pair = [campaign(None, trials_per_site=10, fault=rh.FaultModel(effect=rh.faults.SetValue(value=v))) for v in NANS]
    assert rh.compare(*pair).notes


@pytest.mark.parametrize("name", [entry.partition(".")[2] for entry in NAMED if entry.startswith("environment.")])
def test_another_environment_is_named(name: str) -> None:
    other = changed(result(), environment={**result().record.environment, name: "something else"})
    (note,) = rh.compare(result(), other).notes
    assert note.startswith(f"{name}: baseline {str(result().record.environment.get(name))[:40]}")
    assert "candidate something else; it can change the last bits of logits." in note


def test_other_differences_are_named() -> None:
    until = rh.StoppingRule(half_width=0.3)
    golden = replace(result().golden, eligible=np.arange(12) < 7)
    other = changed(
        result(),
        uninjectable={"extra": "it does not run"},
        golden=golden,
        config=replace(result().config, until=until),
        coverage=replace(result().record.coverage, macs=0.5),
    )
    notes = rh.compare(result(), other).notes
    assert [note.partition(":")[0] for note in notes] == ["until", "uninjectable", "coverage", "eligible"]
    assert "candidate StoppingRule(half_width=0.3" in notes[0]
    assert "baseline 0 (none of its own), candidate 1 (extra only here)" in notes[1]
    assert "baseline 12 of 12 images, candidate 7 of 12 images" in notes[3]
    assert "Note: eligible" in str(rh.compare(result(), other))


@pytest.mark.parametrize(
    "choices",
    [
        {"seed": 5},
        {"design": rh.StratifiedDesign(total_trials=140)},
        {"batch_size": 20, "chunk_size": 20},
        {"engine": "full"},
        {"memory_limit": 1},
        {"trials_per_site": 30},
    ],
)
def test_choices_that_change_no_answer_are_not_named(choices: dict[str, Any]) -> None:
    other = campaign(None, **choices) if "design" in choices else result(**choices)
    assert rh.compare(result(), other).notes in ((), (SAME,))


def test_a_campaign_compared_with_itself_says_so() -> None:
    assert rh.compare(result(), result()).notes == (SAME,)


@pytest.mark.parametrize(
    ("other", "kind", "words"),
    [
        (
            None,
            ArgumentError,
            r"candidate must be a CampaignResult, such as rh.CampaignResult.load\(.folder.\); found None",
        ),
        (
            "run",
            ArgumentError,
            r"candidate must be a CampaignResult, found a path; pass rh.CampaignResult.load\('run'\)",
        ),
        (Path("run"), ArgumentError, r"found a path; pass rh.CampaignResult.load\('run'\)"),
        ({}, ArgumentError, "found {}"),
        (net(), ArgumentError, "candidate must be a CampaignResult"),
    ],
)
def test_other_things_than_results_are_refused(other: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        rh.compare(result(), other)


def test_summaries_and_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"found <Summary, 80 trials: .*"):
        rh.compare(result(), result().summary())  # type: ignore[arg-type]
    part = campaign(tmp_path, shard=rh.Shard(rank=0, world_size=2))
    with pytest.raises(ResultError, match=r"candidate is shard 0 of 2, a part of a campaign; .* rh.merge_campaign"):
        rh.compare(result(), part)
    with pytest.raises(ResultError, match="complete"):
        rh.CampaignResult.load(tmp_path)


@cache
def protected() -> tuple[rh.CampaignResult, rh.CampaignResult]:
    """Return campaigns on a model with and without a protected head: the protection has many tensors of its own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 4)).eval()
    images = labelled()[0]
    with torch.no_grad():
        data = images, model(images).argmax(dim=1)

    def run() -> rh.CampaignResult:
        return campaign(None, model=model, data=data, trials_per_site=100, batch_size=20, chunk_size=20)

    plain = run()
    rh.protect_(model, classifier="3", checksum=True)
    return plain, run()


def test_models_with_other_sites_are_compared_by_harmful_bits() -> None:
    plain, guarded = protected()
    comparison = rh.compare(plain, guarded)
    found = comparison.improvement("last_all", "sdc")
    assert found.weighting == "harmful_bits"
    before, after = (each.summary().last_all.harmful_bits() for each in (plain, guarded))
    assert (found.baseline, found.candidate) == (before, after)
    assert found.ratio.value == pytest.approx(before.value / after.value)
    assert found.note.startswith("Sites of the scope 'last_all': 1 (4 values) in the baseline, ")
    assert "compare harmful bits, or FIT" in str(found).replace("\n  ", " ")
    by_layer = comparison.improvement("last_all", "sdc", weighting="layer_averaged")
    assert by_layer.note == found.note
    assert by_layer.ratio.value > 3 * found.ratio.value  # a mean over many sites in which nothing happens
    assert comparison.improvement("last_all", "delta_loss").weighting == "bit_weighted"
    assert any(note.startswith("sites: baseline 2 (none of its own), candidate ") for note in comparison.notes)
    assert found.note in rh.report.comparison_table([comparison])
    assert "sdc, harmful_bits" in str(comparison)


def test_models_with_the_same_sites_are_compared_by_layers() -> None:
    found = rh.compare(result(), result(seed=5)).improvement("network", "sdc")
    assert (found.weighting, found.note) == ("layer_averaged", "")
    harmful = rh.compare(result(), result(seed=5)).improvement("network", "sdc", weighting="harmful_bits")
    weighted = rh.compare(result(), result(seed=5)).improvement("network", "sdc", weighting="bit_weighted")
    assert dataclasses.astuple(harmful.ratio)[:3] == pytest.approx(dataclasses.astuple(weighted.ratio)[:3])


def test_other_sites_under_a_fault_without_bits_are_compared_by_values() -> None:
    plain, _ = protected()
    fault = plain.config.fault
    negated = [
        changed(each, config=replace(each.config, fault=rh.FaultModel(effect=rh.faults.Negate())))
        for each in protected()
    ]
    assert fault == rh.FaultModel()
    assert rh.compare(*negated).improvement("last_all", "sdc").weighting == "bit_weighted"
