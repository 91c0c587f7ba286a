"""A trial repeats itself, bit for bit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import resilient_heads as rh
from helpers.small_campaign import campaign, labelled, net
from resilient_heads.campaign.run import execution
from resilient_heads.campaign.trials.outcomes import Outcome
from resilient_heads.errors import ArgumentError, DataError, InjectionError, ModelError, ResultError


@pytest.mark.parametrize("protocol", ["raw", "goldeneye"])
def test_every_trial_gives_the_logits_of_the_campaign(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits are overheard while the campaign runs; 90 trials are no multiple of a batch."""
    heard: list[tuple[Tensor, Tensor]] = []
    judge = execution.judge

    def overhear(golden: Tensor, faulty: Tensor, target: Tensor) -> object:
        heard.extend(zip(golden.clone(), faulty.clone(), strict=True))
        return judge(golden, faulty, target)

    monkeypatch.setattr(execution, "judge", overhear)
    result = campaign(None, protocol=protocol, calibration=labelled()[0])
    order = [(site, trial) for first in range(0, 90, 4) for site in range(2) for trial in range(first, first + 4)]
    logits = dict(zip(order, heard, strict=True))
    trials, model, data = result.trials, net(), labelled()
    for index in [*range(0, 180, 7), 88, 89, 178, 179]:
        site, trial = int(trials.site[index]), int(trials.trial[index])
        found = rh.replay(result, model, data, site=result.record.layers[site], trial=trial)
        golden, faulty = logits[site, trial]
        assert found.golden.numpy().tobytes() == golden.numpy().tobytes()
        assert found.faulty.numpy().tobytes() == faulty.numpy().tobytes()
        assert (found.image, found.neuron, found.bit) == (
            trials.image[index],
            trials.neuron[index],
            trials.bit[index],
        )
        assert found.outcome == trials.outcome[index]
        assert found.label == data[1][found.image]
        np.testing.assert_array_equal(
            [found.before, found.after, found.delta_loss],
            [trials.before[index], trials.after[index], trials.delta_loss[index]],
        )
        assert (found.range_limit is None) == (protocol == "raw")
    assert len(set(trials.outcome)) >= 3 - (protocol == "goldeneye")


def test_a_file_and_a_folder_do_as_well(tmp_path: Path) -> None:
    whole = campaign(tmp_path / "c")
    expected = rh.replay(whole, net(), labelled(), site=1, trial=30)
    campaign(tmp_path / "half", shard=rh.Shard(rank=1, world_size=2))
    for source in (tmp_path / "c", whole.save(tmp_path / "r"), tmp_path / "half"):
        found = rh.replay(source, net(), labelled(), site="fc", trial=30)
        assert torch.equal(found.faulty, expected.faulty)
        assert found.layer == expected.layer == "fc"
    with pytest.raises(ResultError, match="does not hold chunk 4"):
        rh.replay(tmp_path / "half", net(), labelled(), site="fc", trial=32)


def test_a_row_of_a_data_frame_is_enough(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    whole = campaign(tmp_path / "c")
    row = pandas.read_parquet(tmp_path / "c/result.parquet").query("outcome == 'sdc'").iloc[0]
    found = rh.replay(whole, net(), labelled(), site=row.layer, trial=row.trial)
    assert found.outcome == Outcome.SDC
    assert found.faulty.argmax() == row.predicted


def test_replay_refuses_another_model_other_data_and_unknown_trials() -> None:
    whole = campaign(None)
    images, labels = labelled()
    with pytest.raises(ModelError, match="campaign's model has the sha256"):
        rh.replay(whole, net(1), (images, labels), site="fc", trial=0)
    with pytest.raises(DataError, match="campaign's data has the sha256"):
        rh.replay(whole, net(), (images[:5], labels[:5]), site="fc", trial=0)
    for site, trial, message in (
        ("fc9", 0, "its sites are: conv, fc"),
        (2, 0, "numbered from 0 to 1"),
        ("fc", 90, "no trial 90 of 'fc'"),
        ("fc", -1, "no trial -1"),
    ):
        with pytest.raises(ArgumentError, match=message):
            rh.replay(whole, net(), (images, labels), site=site, trial=trial)


def test_replay_reports_a_trial_that_ends_differently() -> None:
    """The same weights in another function: only the outcome shows the difference."""
    whole = campaign(None)
    changed = net()
    forward = changed.forward
    changed.forward = lambda x: forward(x) * 3  # type: ignore[method-assign]
    trial = int(whole.trials.trial[(whole.trials.site == 0) & (whole.trials.delta_loss > 0)][0])
    with pytest.raises(InjectionError, match=r"itself: .*delta_loss differ \(the environment is the same"):
        rh.replay(whole, changed, labelled(), site="conv", trial=trial)


def test_the_model_is_left_as_it_was() -> None:
    whole, model = campaign(None), net().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rh.replay(whole, model, labelled(), site="fc", trial=3)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert isinstance(model, nn.Module)
