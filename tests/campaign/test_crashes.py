"""Models that raise an error under a fault: the trial counts as DUE, with either engine, and nothing else changes."""

import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import resilient_heads as rh
from helpers.small_net import IMAGES, LABELS, SmallNet, small_campaign
from resilient_heads.errors import ForwardError, InjectionError, ModelError
from resilient_heads.injection.formats.bits import flip_each_bit


def require_finite(x: Tensor) -> Tensor:
    if not bool(x.abs().max() < 100):
        raise AssertionError("activations are out of range")
    return x


def look_up(x: Tensor) -> Tensor:
    index = (x * 1000).clamp(-1e9, 1e9).nan_to_num().long() + 2**20
    torch.zeros(2**21).gather(0, index.flatten())  # nothing reads the result
    return x


def invert(x: Tensor) -> Tensor:
    largest = x.amax((2, 3))
    torch.linalg.cholesky(largest.T @ largest + torch.eye(4))
    return x


def draw(x: Tensor) -> Tensor:
    torch.multinomial(x.flatten(1).square() + 1e-6, 1)
    return x


CHECKS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "python": (require_finite, "AssertionError: activations are out of range"),
    "index": (look_up, "RuntimeError: index"),
    "linalg": (invert, "LinAlgError"),
    "random": (draw, "RuntimeError: probability tensor"),
}


def outcomes_without(model: SmallNet, result: rh.CampaignResult) -> np.ndarray:
    """Return the outcomes of the same trials in a network without the check."""
    plain = SmallNet()
    plain.load_state_dict(model.state_dict())
    trials = small_campaign(plain, layers=["conv1", "conv2"], trials_per_site=128).trials
    assert trials.after.tobytes() == result.trials.after.tobytes()
    return trials.outcome


@pytest.mark.parametrize("engine", ["incremental", "full"])
@pytest.mark.parametrize("check", CHECKS)
def test_a_trial_in_which_the_model_raises_an_error_is_a_due(check: str, engine: str) -> None:
    code, message = CHECKS[check]
    model = SmallNet(middle=code)
    result = small_campaign(model, layers=["conv1", "conv2"], trials_per_site=128, engine=engine)
    trials, plain = result.trials, outcomes_without(model, result)
    assert set(trials.site[trials.crashed]) == {0}, "the check runs before conv2"
    assert 1 < trials.crashed.sum() < 60
    assert (trials.outcome[trials.crashed] == rh.Outcome.DUE).all()
    assert np.isnan(trials.delta_loss[trials.crashed]).all()
    assert np.array_equal(trials.outcome[~trials.crashed], plain[~trials.crashed])
    crashed = int(trials.trial[trials.crashed][0])
    again = rh.replay(result, model, (IMAGES, LABELS), site="conv1", trial=crashed)
    assert message in str(again.error)
    assert again.outcome == rh.Outcome.DUE
    assert bool(again.faulty.isnan().all())
    assert rh.replay(result, model, (IMAGES, LABELS), site="conv2", trial=0).error is None


def test_both_engines_find_the_same_crashes() -> None:
    for code, _ in CHECKS.values():
        one, other = (
            small_campaign(SmallNet(middle=code), engine=engine, trials_per_site=128)
            for engine in ("incremental", "full")
        )
        assert np.array_equal(one.trials.predicted, other.trials.predicted)


def test_the_first_crash_at_a_site_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        small_campaign(SmallNet(middle=require_finite), engine="full", trials_per_site=128)
    (record,) = caplog.records
    assert "errors for faults at 'conv1'; such trials count as DUE" in record.message
    assert "AssertionError: activations are out of range" in record.message


def test_exhaustive_runs_count_crashes_as_due() -> None:
    def check(logits: Tensor) -> Tensor:
        if bool((logits.abs() > 1e9).any()):
            raise ValueError("a logit is out of range")
        return logits + 0.0

    images, labels = IMAGES[:4], LABELS[:4]
    counts = rh.run_exhaustive(SmallNet(end=check), (images, labels), batch_size=128, progress=False)["fc"]
    with torch.no_grad():
        expected = (flip_each_bit(SmallNet()(images)).abs() > 1e9).sum()
    assert counts.count(rh.Outcome.DUE) == int(expected) > 0


@pytest.mark.parametrize("engine", ["incremental", "full"])
def test_a_model_that_raises_for_every_change_needs_single_images(engine: str) -> None:
    with torch.no_grad():
        expected = SmallNet()(IMAGES)

    def compare(logits: Tensor) -> Tensor:
        if not all(bool(torch.isclose(row, expected, atol=1e-6).all(dim=1).any()) for row in logits):
            raise RuntimeError("the checksum differs")
        return logits

    with pytest.raises(InjectionError, match=r"Pass batch_size=1\. The error: .*the checksum differs"):
        small_campaign(SmallNet(end=compare), layers=["fc"], engine=engine)
    trials = small_campaign(SmallNet(end=compare), layers=["fc"], engine=engine, batch_size=1).trials
    assert trials.crashed.mean() > 0.4


def test_a_lack_of_memory_under_a_fault_is_no_crash() -> None:
    def fail(x: Tensor) -> Tensor:
        if bool(x.abs().max() > 1e9):
            raise MemoryError
        return x

    with pytest.raises(ModelError, match="memory does not suffice") as caught:
        small_campaign(SmallNet(middle=fail), engine="full")
    assert not isinstance(caught.value, ForwardError)
