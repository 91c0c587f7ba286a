"""How many random values an equivalence check needs, and the values."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from resilient_heads.incremental.recording.execute import run_step
from resilient_heads.incremental.recording.operators import REDUCTIONS
from resilient_heads.incremental.recording.recorded_pass import RecordedPass
from resilient_heads.incremental.recording.tape import Step, View

_VALUES = 4096
"""Elements to compare. Of sums that are added up in two orders, about half differ in their last bit."""
_VALUES_16_BIT = 65_536
"""Elements to compare if results have 16 bits or fewer: of such sums, about one in ten thousand differs."""
_MOST_ROUNDS = 32
"""Bounds the time at the start of a campaign. 32 rounds suffice in float32 even for very small tensors, as half of all
elements would differ."""
_DISTINCT = 65_537
"""Random values that are drawn; they are then repeated, since drawing takes longer than the operation. The number is
prime, so that each image gets them at other positions."""


def values_needed(dtype: torch.dtype) -> int:
    """Return how many elements of results of a type a check must compare."""
    return _VALUES_16_BIT if dtype.itemsize <= 2 else _VALUES


def rounds_needed(operator: str, elements: int, dtype: torch.dtype) -> int | None:
    """Return how often a check must repeat an operator on random values.

    The values of a real pass are not enough: they may be zeros, few, or round numbers, whose sums have the same bits in
    any order.

    Args:
        operator: Name of the operator.
        elements: Number of elements that one round compares.
        dtype: Their type.

    Returns:
        The number of rounds; 0 if the operator adds nothing up, None if it would take too many rounds to be sure.
    """
    if operator not in REDUCTIONS:
        return 0
    needed = math.ceil(values_needed(dtype) / max(elements, 1))
    if needed <= _MOST_ROUNDS:
        return needed
    return _MOST_ROUNDS if values_needed(dtype) == _VALUES else None


def run_on_random_values(
    step: Step, tensors: Mapping[View, Tensor], full: RecordedPass, generator: torch.Generator
) -> tuple[dict[View, Tensor], dict[int, Tensor]]:
    """Run an operation that writes to none of its inputs on random values for all images.

    Returns:
        Its arguments by view, and its results by buffer, together with the random inputs.
    """
    random = {
        view.buffer: random_like(full.tape.bases[view.buffer].on(tensor), generator)
        for view, tensor in tensors.items()
        if full.layouts.get(view.buffer) is not None
    }
    arguments = {v: v.on(random[v.buffer]) if v.buffer in random else tensor for v, tensor in tensors.items()}
    run_step(step, random, tensors.__getitem__)
    return arguments, random


def random_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Return normally distributed values in the memory layout of a tensor; a copy if its type is not floating."""
    if not tensor.dtype.is_floating_point:
        return tensor.clone()
    count = tensor.numel()
    dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    drawn = torch.randn(min(count, _DISTINCT), generator=generator, dtype=dtype)
    values = drawn.repeat(-(-count // _DISTINCT))[:count].view(tensor.shape)
    values = values.to(device=tensor.device, dtype=tensor.dtype)
    like = torch.empty_like(tensor)
    return like.copy_(values) if like.stride() == tensor.stride() else values
