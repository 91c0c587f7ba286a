"""Whole models copied, pickled, averaged and written; heads alone: `tests/heads/test_text_guided.py`."""

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import resilient_heads as rh
from helpers.heads import random_embeddings
from resilient_heads.errors import ModelError
from resilient_heads.heads.swap.checkpoint import load_checkpoint


def through_torch(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, through_torch, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_independent(model: nn.Sequential, copied: Callable[[nn.Module], nn.Module]) -> None:
    twin, images = copied(model), torch.randn(3, 3, 8, 8)
    golden = model(images)
    assert torch.equal(twin(images), golden)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    assert torch.equal(model(images), golden)
    assert rh.is_wrapped(twin) == rh.is_wrapped(model)


def test_safetensors_files_restore_every_bit(model: nn.Sequential, tmp_path: Path) -> None:
    path, images = tmp_path / "model.safetensors", torch.randn(3, 3, 8, 8)
    golden = model(images)
    safetensors.torch.save_model(model, path)
    for load in (lambda: safetensors.torch.load_model(model, path), lambda: load_checkpoint(model, load_file(path))):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        load()
        assert torch.equal(model(images), golden)


def load_file(path: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(path)


@pytest.mark.parametrize("direction", ["plain into wrapped", "wrapped into plain"])
def test_a_file_of_the_other_architecture_changes_nothing(
    direction: str, make: Callable[[str], nn.Sequential], make_plain: Callable[..., nn.Sequential], tmp_path: Path
) -> None:
    """With ``strict=False`` too, which is how safetensors' own ``load_model`` calls ``load_state_dict``."""
    source, target = make_plain(), make("cosine")
    if direction == "wrapped into plain":
        source, target = make("cosine"), rh.unwrap_model(make("cosine"))
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_model(source, path)
    before = copy.deepcopy(target.state_dict())
    loads: list[Callable[[], object]] = [
        lambda: safetensors.torch.load_model(target, path),
        lambda: target.load_state_dict(load_file(path), strict=False),
        lambda: load_checkpoint(target, load_file(path)),
    ]
    for load in loads:
        with pytest.raises(ModelError, match="nothing was loaded"):
            load()
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())


def test_a_partial_loader_that_adds_the_models_tensors_is_refused(
    make: Callable[[str], nn.Sequential], make_plain: Callable[..., nn.Sequential]
) -> None:
    """torch.distributed.checkpoint completes a state dict with what the model has already."""
    target = make("cosine")
    with pytest.raises(ModelError, match="has a plain classifier at '7'"):
        target.load_state_dict({**target.state_dict(), **make_plain().state_dict()})


def test_a_fused_linear_head_loads_strictly_into_the_stock_model(
    make: Callable[[str], nn.Sequential], make_plain: Callable[..., nn.Sequential]
) -> None:
    for kind, conv in (("fused linear", False), ("linear convolution", True)):
        model = make(kind)
        model = model if "fused" in kind else rh.fuse(model)
        stock, images = make_plain(conv=conv).eval(), torch.randn(3, 3, 8, 8)
        stock.load_state_dict(model.state_dict(), strict=True)
        assert torch.equal(stock(images), model(images))


def test_an_average_of_weights_is_a_wrapped_model(make: Callable[[str], nn.Sequential]) -> None:
    model = make("cosine")
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    first = copy.deepcopy(model.state_dict())
    average.update_parameters(model)  # the first update copies
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(2)
    average.update_parameters(model)
    head = average.module[-1]
    torch.testing.assert_close(head.projection.weight, first["7.projection.weight"] + 1)
    torch.testing.assert_close(head.logit_scale, first["7.logit_scale"] + 1)
    images = torch.randn(3, 3, 8, 8)
    golden = average.eval()(images)
    torch.testing.assert_close(rh.fuse(average)(images), golden, rtol=1e-4, atol=1e-4)


def test_copies_hold_the_replaced_layer_and_the_text_rows_only(make: Callable[[str], nn.Sequential]) -> None:
    """Return by how much a pickle of a wrapped model is larger than its weights, as docs/deployment.md says."""
    model = rh.wrap_model(nn.Sequential(nn.Linear(4, 300), nn.Linear(300, 100)), embeddings=random_embeddings(100, 50))
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    extra = len(pickle.dumps(model)) - weights
    assert abs(extra - 4 * (300 * 100 + 100 + 100 * 50)) < 20_000
