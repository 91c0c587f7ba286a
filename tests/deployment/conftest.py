from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import nn

import resilient_heads as rh
from helpers.heads import random_embeddings
from helpers.scripts import load_script

HEADS = ("cosine", "linear", "fused cosine", "fused convolution")  # a fused linear head is a stock layer


def plain(*, conv: bool = False) -> nn.Sequential:
    """A small classifier of 3x8x8 images with the usual layers of a backbone."""
    body = [nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1)]
    if conv:
        return nn.Sequential(*body, nn.GELU(), nn.Conv2d(16, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*body, nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def wrapped(kind: str = "cosine") -> nn.Sequential:
    """The same model with one kind of head, in evaluation mode, with large features."""
    torch.manual_seed(0)
    model = plain(conv="convolution" in kind)
    with torch.no_grad():
        model[3].weight.mul_(4)
        model[1].running_var.uniform_(0.5, 2)
    rh.wrap_model(model, embeddings=random_embeddings(), normalize="linear" not in kind)
    return (rh.fuse(model) if "fused" in kind else model).eval()


@pytest.fixture
def make() -> Callable[[str], nn.Sequential]:
    return wrapped


@pytest.fixture
def make_plain() -> Callable[..., nn.Sequential]:
    return plain


@pytest.fixture(params=[pytest.param(kind, marks=() if kind == "cosine" else pytest.mark.slow) for kind in HEADS])
def model(request: pytest.FixtureRequest) -> nn.Sequential:
    """A classifier with each kind of head; all but the cosine head are slow tests."""
    return wrapped(request.param)


@pytest.fixture
def example() -> Callable[[str], ModuleType]:
    """Return how to load a script of examples/ as a module."""

    return lambda name: load_script(f"examples/{name}.py")
