"""The same pass at another batch size: where each image lies, and which operations give the same bits."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from resilient_heads.incremental.recording.batch_layout import (
    BatchLayout,
    layout_from_shapes,
    resolve_order,
    with_changed_image,
)
from resilient_heads.incremental.recording.execute import as_list
from resilient_heads.incremental.recording.recorder import Run, record
from resilient_heads.incremental.recording.tape import Tape

_CHANGED = (0, 1)
"""Images of three that are changed, one after the other, to see where they lie."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A pass over a number of images.

    Attributes:
        size: Number of images.
        tape: The pass.
        rows: For each buffer where its images lie; None where it has nothing to do with the batch. Buffers of which
            that is unknown are not in it.
        inexact: Operations that give other bits than in the whole batch; they must see the whole batch.
    """

    size: int
    tape: Tape
    rows: dict[int, BatchLayout | None]
    inexact: frozenset[int] = frozenset()

    def shaped(self, buffer: int, device: torch.device) -> Tensor:
        """Return new memory like that of a buffer."""
        root = self.tape.roots[buffer]
        return torch.empty_strided(root.size, root.stride, dtype=root.dtype, device=device)


def whole_batch(run: Run, tape: Tape, inputs: Tensor) -> Batch:
    """Find where the images of a batch lie, by running three of them, and again with one of them changed.

    Args:
        run: Runs the model.
        tape: The pass over all images.
        inputs: All images, at least four.
    """
    few = inputs[torch.tensor([0, 1, 2], device=inputs.device)]
    recorded, _ = record(run, few)
    small = recorded.tape
    if [step.func for step in small.steps] != [step.func for step in tape.steps]:
        return Batch(len(inputs), tape, {})
    contents = [_Contents(small) for _ in (None, *_CHANGED)]
    for content, images in zip(contents, (few, *(with_changed_image(few, image) for image in _CHANGED)), strict=True):
        content.made[small.images] = images
        with content:
            run(None, images)
    rows: dict[int, BatchLayout | None] = {}
    for buffer, (many, own) in enumerate(zip(tape.roots, small.roots, strict=True)):
        try:
            found = layout_from_shapes(many.size, own.size, len(inputs), len(few))
        except ValueError:
            continue
        if found is None:
            rows[buffer] = None
        elif buffer in tape.whole & small.whole and all(buffer in content.made for content in contents):
            settled = resolve_order(found, [content.made[buffer] for content in contents], _CHANGED)
            if settled is not None:
                rows[buffer] = settled
    return Batch(len(inputs), tape, rows)


class _Contents(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps a copy of each buffer as the pass makes it."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: dict[int, Tensor] = {}
        self._steps = iter(tape.steps)

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and keep what it gave."""
        result = func(*args, **(kwargs or {}))
        step = next(self._steps, None)
        if step is not None and step.func is func:
            for view, value in zip(step.outputs, as_list(result), strict=True):
                if view is not None and view.buffer in step.creates:
                    self.made[view.buffer] = value.clone()
        return result
