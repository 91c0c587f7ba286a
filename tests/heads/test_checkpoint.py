"""A checkpoint of another architecture changes nothing."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

import resilient_heads as rh
from helpers.heads import random_embeddings, snapshot
from resilient_heads.errors import ModelError
from resilient_heads.heads.swap.checkpoint import load_checkpoint


def build() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))


def wrapped(dimensions: int = 12) -> nn.Sequential:
    return rh.wrap_model(build(), embeddings=random_embeddings(dimensions=dimensions))


REFUSED: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], str]] = {
    "plain into wrapped": (wrapped, build, "has a plain classifier at '2'"),
    "wrapped into unwrapped": (lambda: rh.unwrap_model(wrapped()), wrapped, "has a text-guided head at '2'"),
    "fused into wrapped": (wrapped, lambda: rh.fuse(wrapped()), "those of a fused head"),
    "wrapped into fused": (lambda: rh.fuse(wrapped()), wrapped, "those of another head"),
    "other embeddings": (wrapped, lambda: wrapped(5), r"is \(5, 8\) in the checkpoint, \(12, 8\) in the model"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("copied", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_checkpoint_of_another_architecture_is_refused_before_a_weight_changes(
    case: str, copied: Callable[[nn.Module], nn.Module]
) -> None:
    target, source, message = REFUSED[case]
    model = copied(target())
    before = snapshot(model)
    with pytest.raises(ModelError, match=message):
        model.load_state_dict(source().state_dict())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_checkpoint_loads_into_a_model_wrapped_in_the_same_way() -> None:
    first, second = wrapped(), wrapped()
    second.load_state_dict(first.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    second.load_state_dict(first.state_dict(), assign=True)
    inner = nn.ModuleDict({"net": wrapped()})
    with pytest.raises(ModelError, match=r"has a plain classifier at 'net\.2'"):
        inner.load_state_dict({f"net.{name}": tensor for name, tensor in build().state_dict().items()})


def test_a_backbone_alone_loads_with_strict_false() -> None:
    model, plain = wrapped(), build()
    backbone = {name: tensor for name, tensor in plain.state_dict().items() if not name.startswith("2.")}
    missing, unexpected = model.load_state_dict(backbone, strict=False)
    assert unexpected == []
    assert "2.latent.weight" in missing
    assert torch.equal(model[0].weight, plain[0].weight)


def test_an_average_of_weights_keeps_the_check() -> None:
    average = torch.optim.swa_utils.AveragedModel(wrapped())
    before = snapshot(average)
    plain = torch.optim.swa_utils.AveragedModel(build())
    with pytest.raises(ModelError, match=r"at 'module\.2'"):
        average.load_state_dict(plain.state_dict())
    assert all(torch.equal(before[name], tensor) for name, tensor in average.state_dict().items())


def test_load_checkpoint_leaves_a_stock_model_unchanged_when_it_refuses() -> None:
    """PyTorch raises after it has overwritten the backbone, which is why this function exists."""
    model, other = build(), wrapped()
    before = snapshot(model)
    with pytest.raises(ModelError, match="has a text-guided head at '2'"):
        load_checkpoint(model, other.state_dict())
    wrong = {**build().state_dict(), "0.weight": torch.zeros(3, 3), "extra": torch.zeros(1)}
    with pytest.raises(ModelError, match=r"It has 9 of.*; unexpected: extra; 0\.weight is \(3, 3\) in"):
        load_checkpoint(model, wrong)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(RuntimeError):
        model.load_state_dict(other.state_dict())
    assert not torch.equal(model[0].weight, before["0.weight"])
    fresh = build()
    assert load_checkpoint(model, fresh.state_dict()) is model
    assert torch.equal(model[0].weight, fresh[0].weight)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_load_checkpoint_gives_a_lazy_layer_its_size() -> None:
    lazy, plain = nn.Sequential(nn.LazyLinear(4)), nn.Sequential(nn.Linear(6, 4))
    load_checkpoint(lazy, plain.state_dict())
    assert torch.equal(lazy[0].weight, plain[0].weight)
