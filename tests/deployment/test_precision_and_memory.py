"""Training under autocast and with gradient checkpointing."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint, checkpoint_sequential


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(8, 3, 8, 8), torch.randint(10, (8,))


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in found.values())
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


def test_autocast_trains_in_bfloat16_with_gradients_in_float32(model: nn.Sequential) -> None:
    images, labels = batch()
    exact = gradients(model, cross_entropy(model(images), labels))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
        assert logits.dtype == torch.bfloat16
        loss = cross_entropy(logits, labels)
    for name, gradient in gradients(model, loss).items():
        assert gradient.dtype == torch.float32
        close = (gradient - exact[name]).norm() <= 0.1 * exact[name].norm() + 1e-3
        assert close, name


@pytest.mark.parametrize("kind", ["cosine", "linear", "convolution"])
def test_training_under_autocast_learns(kind: str, make: Callable[[str], nn.Sequential]) -> None:
    model, (images, labels) = make(kind).train(), batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(20):
        with torch.autocast("cpu", torch.bfloat16):
            loss = cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_gradient_checkpointing_gives_the_same_bits(model: nn.Sequential) -> None:
    """In segments over the whole model, and around the head alone."""
    images, labels = batch()
    model[1].eval()
    expected = gradients(model, cross_entropy(model(images), labels))

    class HeadAgain(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            again: torch.Tensor = checkpoint(head, x, use_reentrant=False)
            return again

    twin = copy.deepcopy(model)
    at = next(at for at in reversed(range(len(twin))) if next(twin[at].parameters(), None) is not None)
    head = twin[at]
    segments = gradients(model, cross_entropy(checkpoint_sequential(model, 3, images, use_reentrant=False), labels))
    assert all(torch.equal(segments[name], gradient) for name, gradient in expected.items())
    twin[at] = HeadAgain()
    cross_entropy(twin(images), labels).backward()
    for name, parameter in head.named_parameters():
        assert torch.equal(parameter.grad, expected[f"{at}.{name}"]), name
