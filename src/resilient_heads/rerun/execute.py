"""Run one recorded operation on other memory."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from resilient_heads.rerun.recorder import copy_memory
from resilient_heads.rerun.tape import Step, View, replace_views


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
    for made, value in zip(step.outputs, as_list(step.func(*args, **kwargs)), strict=True):
        if made is not None and made.buffer in step.creates:
            roots[made.buffer] = value


def as_list(result: Any) -> list[Any]:
    """Return the results of an operation that may have one or several."""
    return list(result) if isinstance(result, list | tuple) else [result]
