"""Running a model without changing it."""

import pytest
import torch
from torch import nn

from resilient_heads.errors import ArgumentError
from resilient_heads.evaluation import device_of, evaluating, usable_device


def test_each_module_gets_its_mode_back_when_the_block_raises() -> None:
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3))
    model[1].eval()
    with evaluating(model):
        assert not model[0].training
        assert not torch.is_grad_enabled()
    with pytest.raises(RuntimeError, match="running_mean"), evaluating(model):
        model(torch.zeros(2, 5))
    assert (model[0].training, model[1].training) == (True, False)
    assert torch.is_grad_enabled()


def test_a_model_without_parameters_is_on_the_cpu() -> None:
    assert device_of(nn.ReLU()) == torch.device("cpu")


def test_cuda_is_the_device_of_the_launchers_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "77")
    assert usable_device("cpu") == torch.device("cpu")
    with pytest.raises(ArgumentError, match="'cuda:77' cannot be used"):
        usable_device("cuda")


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "cpu:cpu", 3.5])
def test_a_device_that_this_machine_lacks_is_refused(device: str) -> None:
    with pytest.raises(ArgumentError, match="cannot be used, try 'cpu' or 'cuda'"):
        usable_device(device)
