"""Run one recorded operation on other memory."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from resilient_heads.incremental.recording.recorder import copy_memory
from resilient_heads.incremental.recording.tape import ControlFlowError, Step, View, replace_views


def run_step(step: Step, roots: dict[int, Tensor], golden: Callable[[View], Tensor]) -> None:
    """Run an operation on ``roots`` where they hold a buffer, and on golden content otherwise.

    Args:
        step: The operation.
        roots: Buffer to a tensor on its memory. Buffers that the operation makes or writes to are put into it; golden
            content is copied before it is written over.
        golden: Gives the tensor that a view shows.
    """
    for view in step.views:
        if view.buffer in step.writes and view.buffer not in roots:
            roots[view.buffer] = copy_memory(golden(view))

    def tensor(view: View) -> Tensor:
        return view.on(roots[view.buffer]) if view.buffer in roots else golden(view)

    args = [replace_views(value, tensor) for value in step.args]
    kwargs = {name: replace_views(value, tensor) for name, value in step.kwargs}
    with _as_recorded(_device(args)):
        results = as_list(step.func(*args, **kwargs))
    for made, value in zip(step.outputs, results, strict=True):
        if made is not None and made.buffer in step.creates:
            if (tuple(value.shape), value.dtype) != (made.size, made.dtype) or (
                value.stride() != made.stride and value.numel() > 1
            ):
                raise ControlFlowError(f"the shape of a result depends on values ({step.func})")
            roots[made.buffer] = value


def _as_recorded(device: str) -> AbstractContextManager[object]:
    """Cast nothing automatically: what was cast is on the tape as it was cast."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _device(args: list[Any]) -> str:
    """Return the type of the device on which an operation runs."""
    return next((value.device.type for value in args if isinstance(value, Tensor)), "cpu")


def as_list(result: Any) -> list[Any]:
    """Return the results of an operation that may have one or several."""
    return list(result) if isinstance(result, list | tuple) else [result]
