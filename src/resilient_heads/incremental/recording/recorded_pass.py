"""A recorded pass with the place of each image in its buffers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resilient_heads.incremental.recording.batch_layout import (
    BatchLayout,
    layout_from_shapes,
    resolve_order,
    with_changed_image,
)
from resilient_heads.incremental.recording.observer import observe_pass
from resilient_heads.incremental.recording.recorder import RunModel, record
from resilient_heads.incremental.recording.tape import Step, Tape, View, as_list

_CHANGED_IMAGES = (0, 1)
"""Of three images, those that are changed one after the other to see where they lie."""


@dataclass(frozen=True, slots=True)
class RecordedPass:
    """A recorded pass over a batch.

    Attributes:
        batch_size: Number of images.
        tape: The pass.
        layouts: For each buffer, where its images lie; None if its content does not depend on the images. Buffers
            with an unknown layout are missing.
        inexact: Steps that give other bits than in the full batch; they must run on the full batch.
    """

    batch_size: int
    tape: Tape
    layouts: dict[int, BatchLayout | None]
    inexact: frozenset[int] = frozenset()

    def layout(self, buffer: int) -> BatchLayout:
        """Return where the images lie in a buffer that holds a part for each."""
        layout = self.layouts[buffer]
        assert layout is not None
        return layout

    def select_images(self, buffer: int, source: Tensor, images: Tensor) -> Tensor:
        """Copy the parts of some images to new memory that is laid out as the buffer is in this pass.

        Args:
            buffer: The buffer.
            source: Its base in a pass of any batch size.
            images: ``(batch_size,)``, positions in ``source``.
        """
        base = self.tape.bases[buffer]
        out = torch.empty_strided(base.size, base.stride, dtype=base.dtype, device=source.device)
        return self.layout(buffer).select_images(source, images, out)


def locate_images(run: RunModel, tape: Tape, images: Tensor) -> RecordedPass:
    """Find where the images of a batch lie: run three of them, and again with one of them changed.

    Args:
        run: Runs the model.
        tape: The pass over all images.
        images: All images, at least four.
    """
    few = images[torch.tensor([0, 1, 2], device=images.device)]
    recorder, _ = record(run, few)
    small = recorder.tape
    if not small.same_operators(tape):
        return RecordedPass(len(images), tape, {})
    passes = [_contents(run, small, few)]
    passes += [_contents(run, small, with_changed_image(few, image)) for image in _CHANGED_IMAGES]
    layouts: dict[int, BatchLayout | None] = {}
    for buffer, (large_base, small_base) in enumerate(zip(tape.bases, small.bases, strict=True)):
        try:
            layout = layout_from_shapes(large_base.size, small_base.size, len(images), len(few))
        except ValueError:
            continue
        if layout is None:
            layouts[buffer] = None
        elif buffer in tape.dense & small.dense and all(buffer in contents for contents in passes):
            resolved = resolve_order(layout, [contents[buffer] for contents in passes], _CHANGED_IMAGES)
            if resolved is not None:
                layouts[buffer] = resolved
    return RecordedPass(len(images), tape, layouts)


def _contents(run: RunModel, tape: Tape, images: Tensor) -> dict[int, Tensor]:
    """Run the model, and return a copy of each buffer as the pass makes it."""
    contents = {tape.images: images}

    def copy_results(_number: int, step: Step, _tensors: dict[View, Tensor], run_operation: Callable[[], Any]) -> Any:
        result = run_operation()
        for view, value in zip(step.outputs, as_list(result), strict=True):
            if view is not None and view.buffer in step.creates:
                contents[view.buffer] = value.clone()
        return result

    observe_pass(run, tape, images, copy_results)
    return contents
