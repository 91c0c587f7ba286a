"""A function that changes a model in place returns that model or ends in ``_``, and says "in place" at once."""

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import nn

import resilient_heads as rh
from helpers.public_face import public_objects


def wrapped() -> nn.Module:
    return rh.wrap_model(nn.Sequential(nn.Linear(6, 10)), embeddings="cifar10")


IN_PLACE: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], object]]] = {
    "rh.wrap_model": (
        lambda: nn.Sequential(nn.Linear(6, 10)),
        lambda model: rh.wrap_model(model, embeddings="cifar10"),
    ),
    "rh.unwrap_model": (wrapped, rh.unwrap_model),
    "rh.fuse": (wrapped, rh.fuse),
    "rh.protect_": (wrapped, lambda model: rh.protect_(model, bounds=True)),
    "rh.unprotect_": (lambda: rh.protect_(wrapped(), bounds=True), rh.unprotect_),
    "rh.load_checkpoint": (wrapped, lambda model: rh.load_checkpoint(model, wrapped().state_dict())),
    "rh.heads.warm_start_": (
        lambda: rh.TextGuidedHead(6, rh.load_embeddings("cifar10")),
        lambda head: rh.heads.warm_start_(head, nn.Linear(6, 10)),
    ),
}


def first_line(function: object) -> str:
    return (inspect.getdoc(function) or "").partition("\n")[0]


def fingerprint(model: nn.Module) -> tuple[str, dict[str, torch.Tensor]]:
    return repr(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", IN_PLACE)
def test_a_function_that_works_in_place_follows_the_rule(name: str) -> None:
    build, change = IN_PLACE[name]
    model = build()
    text, tensors = fingerprint(model)
    result = change(model)
    new_text, new_tensors = fingerprint(model)
    assert (
        text != new_text
        or tensors.keys() != new_tensors.keys()
        or any(not torch.equal(tensor, new_tensors[key]) for key, tensor in tensors.items())
    ), "nothing changed in place"
    assert result is model or name.endswith("_")
    assert "in place" in first_line(public_objects()[name])


def test_every_public_function_of_heads_that_says_in_place_is_tested() -> None:
    said = {
        name
        for name, value in public_objects().items()
        if inspect.isfunction(value) and ".heads." in value.__module__ and "in place" in first_line(value)
    }
    assert said == set(IN_PLACE)
