"""Run a model without changing it: evaluation mode inside a block, and the device to run on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from resilient_heads.errors import ArgumentError


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run the block without gradients and with every module in evaluation mode; restore each module's mode on exit."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        # Not inference_mode: tensors that a module caches inside the block must stay usable in training.
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter; the CPU for a model without parameters."""
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def usable_device(device: torch.device | str) -> torch.device:
    """Return a device on which a tensor can be made.

    Args:
        device: A device or its name. ``"cuda"`` means the GPU that a launcher such as torchrun names in ``LOCAL_RANK``.

    Raises:
        ArgumentError: PyTorch knows no such device, or this machine has none.

    >>> usable_device("cpu")
    device(type='cpu')
    """
    rank = os.environ.get("LOCAL_RANK", "")
    chosen = f"cuda:{rank}" if device == "cuda" and rank.isdecimal() else device
    try:
        usable = torch.device(chosen)
        torch.zeros(1, device=usable).item()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise ArgumentError(f"The device {str(chosen)!r} cannot be used, try 'cpu' or 'cuda': {reason:.160}") from error
    return usable
