"""Models whose weights accelerate keeps elsewhere, or loads for each pass."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import resilient_heads as rh
from helpers.small_net import IMAGES, SmallNet, require_same_trials, small_campaign
from resilient_heads.errors import FaultError

accelerate = pytest.importorskip("accelerate")


def offload_by_hook(model: nn.Module, _folder: Path) -> nn.Module:
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    for name in ("conv1", "conv2", "fc"):
        layer = getattr(model, name)
        values = dict(copy.deepcopy(layer).state_dict())
        add_hook_to_module(layer, AlignDevicesHook(execution_device="cpu", offload=True, weights_map=values))
    return model


def hook_only(model: nn.Module, _folder: Path) -> nn.Module:
    from accelerate.hooks import ModelHook, add_hook_to_module

    return add_hook_to_module(add_hook_to_module(model, ModelHook()), ModelHook(), append=True)


def dispatch(model: nn.Module, folder: Path) -> nn.Module:
    places = {"conv1": "cpu", "bn": "cpu", "conv2": "disk", "fc": "disk"}
    return accelerate.dispatch_model(model, places, offload_dir=folder, main_device="cpu")


OFFLOADED: dict[str, tuple[Callable[[nn.Module, Path], nn.Module], bool]] = {
    "hook": (hook_only, False),
    "hook with offload": (offload_by_hook, True),
    "cpu": (lambda model, _: accelerate.cpu_offload(model, execution_device="cpu"), True),
    "disk": (lambda model, folder: accelerate.disk_offload(model, folder, execution_device="cpu"), True),
    "dispatched": (dispatch, True),
}


@pytest.mark.parametrize("engine", ["incremental", "full"])
@pytest.mark.parametrize("kind", OFFLOADED)
def test_campaigns_run_models_that_accelerate_offloads(kind: str, engine: str, tmp_path: Path) -> None:
    wrap, offloads = OFFLOADED[kind]
    model = wrap(SmallNet(), tmp_path)
    assert model.fc.weight.is_meta == offloads
    result = require_same_trials(model, engine=engine)
    assert model.fc.weight.is_meta == offloads
    assert result.record.model_sha256 == small_campaign(SmallNet()).record.model_sha256


@pytest.mark.parametrize("kind", OFFLOADED)
def test_weight_faults_reach_the_weight_or_are_refused(kind: str, tmp_path: Path) -> None:
    wrap, offloads = OFFLOADED[kind]
    model, plain = wrap(SmallNet(), tmp_path), SmallNet()
    fault = rh.WeightBitFlip(layer="fc", index=(0, 0), bit=30)
    with torch.no_grad(), rh.inject(plain, fault):
        faulty = plain(IMAGES)
    if offloads:
        with pytest.raises(FaultError, match=r"accelerate loads it for each pass\. Call .*remove_hook_from_submodules"):
            rh.inject(model, fault).__enter__()
        accelerate.hooks.remove_hook_from_submodules(model)
    with torch.no_grad():
        with rh.inject(model, fault):
            assert torch.equal(model(IMAGES), faulty)
        assert torch.equal(model(IMAGES), SmallNet()(IMAGES))


def test_a_fingerprint_sees_a_change_of_an_offloaded_weight() -> None:
    def digest(scale: float) -> str:
        model = SmallNet()
        with torch.no_grad():
            model.fc.weight[0, 0] *= scale
        return small_campaign(accelerate.cpu_offload(model, execution_device="cpu")).record.model_sha256

    assert digest(1.0) != digest(1.0001)
    assert digest(1.0) == digest(1.0)
