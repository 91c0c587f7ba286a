"""Campaigns whose trials do other things than flip one bit."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import resilient_heads as rh
from resilient_heads.campaign.result.fault_record import as_record, from_record
from resilient_heads.campaign.trials.outcomes import Outcome
from resilient_heads.errors import ArgumentError

FAULTS = {
    "three flips": rh.FaultModel(elements=rh.faults.RandomElements(count=3)),
    "a burst": rh.FaultModel(
        elements=rh.faults.RandomElements(count=4, adjacent=True), effect=rh.faults.Flip(count=2, adjacent=True)
    ),
    "an error rate": rh.FaultModel(elements=rh.faults.ErrorRate(rate=1e-3)),
    "stuck at 1": rh.FaultModel(effect=rh.faults.StuckAt(value=1, bits=(30,))),
    "a random value": rh.FaultModel(effect=rh.faults.RandomValue(low=-2.0, high=2.0)),
    "a random word": rh.FaultModel(effect=rh.faults.RandomWord()),
    "zero": rh.FaultModel(effect=rh.faults.SetValue(value=0.0)),
    "another sign": rh.FaultModel(effect=rh.faults.Negate()),
    "the layer's maximum": rh.FaultModel(effect=rh.faults.LayerMaximum()),
    "an int8 word": rh.FaultModel(format=rh.formats.AffineInteger()),
    "a shared exponent": rh.FaultModel(format=rh.formats.BlockFloat(block_size=8), shared=True),
}


@pytest.fixture
def data() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 5))
    images = torch.randn(20, 1, 6, 6)
    with torch.no_grad():
        return model.eval(), (images, model(images).argmax(dim=1))


@pytest.mark.parametrize("kind", FAULTS)
def test_every_fault_model_in_both_engines(kind: str, data: tuple[nn.Module, tuple[Tensor, Tensor]]) -> None:
    model, images = data
    results = [
        rh.run_campaign(
            model,
            images,
            protocol="raw",
            fault=FAULTS[kind],
            trials_per_site=40,
            batch_size=16,
            engine=engine,
            progress=False,
        )
        for engine in ("incremental", "full")
    ]
    for name, column in results[0].trials.columns.items():
        assert column.tobytes() == results[1].trials.columns[name].tobytes(), name
    assert len(set(results[0].trials.outcome)) > 1


@pytest.mark.parametrize("kind", FAULTS)
def test_records_of_faults(kind: str) -> None:
    fault = FAULTS[kind]
    assert from_record(json.loads(json.dumps(as_record(fault)))) == fault


def test_a_campaign_of_other_faults_is_kept_resumed_and_replayed(
    data: tuple[nn.Module, tuple[Tensor, Tensor]], tmp_path: Path
) -> None:
    model, images = data
    fault = FAULTS["three flips"]

    def run() -> rh.CampaignResult:
        return rh.run_campaign(
            model,
            images,
            protocol="raw",
            fault=fault,
            trials_per_site=32,
            batch_size=8,
            output=tmp_path / "run",
            progress=False,
        )

    first, again = run(), run()
    loaded = rh.CampaignResult.load(tmp_path / "run")
    assert first.config == again.config == loaded.config
    assert loaded.config.fault == fault
    trial = rh.replay(tmp_path / "run", model, images, site="3", trial=17)
    row = np.flatnonzero((first.trials.site == 1) & (first.trials.trial == 17))[0]
    assert trial.outcome == first.trials.outcome[row]


def test_negation_by_hand(data: tuple[nn.Module, tuple[Tensor, Tensor]]) -> None:
    model, images = data
    fault = FAULTS["another sign"]
    trials = rh.run_campaign(
        model, images, protocol="raw", fault=fault, layers=["5"], trials_per_site=64, progress=False
    ).trials
    assert (trials.after == -trials.before).all()
    assert (trials.bit == 255).all()
    with torch.no_grad():
        logits = model(images[0]).double().numpy()
    faulty = logits[trials.image].copy()
    faulty[np.arange(64), trials.neuron] *= -1
    np.testing.assert_array_equal(faulty.argmax(axis=1) != trials.predicted, np.zeros(64, dtype=bool))


def test_a_zero_detector_makes_zeros(data: tuple[nn.Module, tuple[Tensor, Tensor]]) -> None:
    model, images = data
    zeroing = rh.Protocol(name="zeroing", range_detector="zero")
    result = rh.run_campaign(model, images, protocol=zeroing, calibration=images, trials_per_site=200, progress=False)
    assert not (result.trials.outcome == Outcome.DUE).any()
    clamped = rh.run_campaign(model, images, calibration=images, trials_per_site=200, progress=False)
    assert (result.trials.delta_loss != clamped.trials.delta_loss).any()


def test_strata_of_bits_know_single_flips_only(data: tuple[nn.Module, tuple[Tensor, Tensor]]) -> None:
    model, images = data
    with pytest.raises(ArgumentError, match="consist of single flips"):
        rh.run_campaign(
            model,
            images,
            protocol="raw",
            design=rh.StratifiedDesign(total_trials=1000),
            fault=FAULTS["zero"],
            progress=False,
        )


def test_trials_without_a_bit_stay_in_the_strata_of_their_site() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2), nn.Linear(2, 40))
    images = torch.randn(8, 3, 2, 2)
    data = (images, model(images).argmax(dim=1))
    for fault in (rh.FaultModel(effect=rh.faults.SetValue(value=2.0)), rh.FaultModel(effect=rh.faults.Negate())):
        result = rh.run_campaign(model, data, protocol="raw", fault=fault, trials_per_site=32, progress=False)
        figures = [layer.figures.sdc.value for layer in result.by_layer()]
        assert result.summary().network.layer_averaged.sdc.value == pytest.approx(sum(figures) / len(figures))


def test_a_campaign_with_nan_as_value_resumes(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    images = torch.randn(8, 3, 2, 2)
    data = (images, model(images).argmax(dim=1))
    fault = rh.FaultModel(effect=rh.faults.SetValue(value=float("nan")))
    results = [
        rh.run_campaign(
            model, data, protocol="raw", fault=fault, trials_per_site=16, engine="full", output=tmp_path, progress=False
        )
        for _ in range(2)
    ]
    assert results[0].trials.columns.keys() == results[1].trials.columns.keys()
    assert (results[0].trials.outcome == results[1].trials.outcome).all()
    assert results[1].config.engine == "full"
