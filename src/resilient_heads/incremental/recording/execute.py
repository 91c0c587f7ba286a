"""Run one recorded operation on other memory."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from resilient_heads.incremental.recording.tape import (
    ControlFlowError,
    Step,
    View,
    as_list,
    copy_memory,
    flat_tensors,
    replace_views,
)


def run_step(step: Step, buffers: dict[int, Tensor], golden: Callable[[View], Tensor]) -> None:
    """Run an operation on ``buffers`` where they hold what it reads, and on golden content otherwise.

    Args:
        step: The operation.
        buffers: Buffer to a tensor on its memory. The buffers that the operation makes or writes to are put here;
            golden content is copied before the operation writes to it.
        golden: Returns the golden tensor of a view.

    Raises:
        ControlFlowError: A result has another shape than in the recorded pass.
    """
    for view in step.views:
        if view.buffer in step.writes and view.buffer not in buffers:
            buffers[view.buffer] = copy_memory(golden(view))

    def tensor_of(view: View) -> Tensor:
        return view.on(buffers[view.buffer]) if view.buffer in buffers else golden(view)

    args = [replace_views(value, tensor_of) for value in step.args]
    kwargs = {name: replace_views(value, tensor_of) for name, value in step.kwargs}
    with _without_autocast(args):
        results = as_list(step.func(*args, **kwargs))
    for expected, result in zip(step.outputs, results, strict=True):
        if expected is not None and expected.buffer in step.creates:
            same_strides = result.numel() <= 1 or result.stride() == expected.stride
            if (tuple(result.shape), result.dtype) != (expected.size, expected.dtype) or not same_strides:
                raise ControlFlowError(f"the shape of a result depends on values ({step.func})")
            buffers[expected.buffer] = result


def _without_autocast(args: list[object]) -> AbstractContextManager[object]:
    """Switch autocast off where it is on: the tape holds the casts that autocast made."""
    first = next(iter(flat_tensors(args)), None)
    device = "cpu" if first is None else first.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
