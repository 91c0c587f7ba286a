"""A recorded pass with the place of each image in its buffers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from resilient_heads.incremental.recording.batch_layout import (
    BatchLayout,
    layout_from_shapes,
    resolve_order,
    with_changed_image,
)
from resilient_heads.incremental.recording.recorder import RunModel, record
from resilient_heads.incremental.recording.tape import BufferVersion, Tape

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

        ``source`` is the buffer's base in a pass of any size; ``images``, ``(batch_size,)``, are positions in it.
        """
        base = self.tape.bases[buffer]
        out = torch.empty_strided(base.size, base.stride, dtype=base.dtype, device=source.device)
        return self.layout(buffer).select_images(source, images, out)


def locate_images(run: RunModel, tape: Tape, images: Tensor) -> RecordedPass:
    """Find where the images of a batch of at least four lie: run three of them, and again with one of them changed.

    ``tape`` is the pass over all images.
    """
    few = images[torch.tensor([0, 1, 2], device=images.device)]
    batches = [few, *(with_changed_image(few, image) for image in _CHANGED_IMAGES)]
    initial = [BufferVersion(buffer, 0) for buffer in range(len(tape.bases))]
    passes = [record(run, batch, initial)[0] for batch in batches]
    if not all(recorder.tape.same_operators(tape) for recorder in passes):
        return RecordedPass(len(images), tape, {})
    small = passes[0].tape
    layouts: dict[int, BatchLayout | None] = {}
    for buffer, (large_base, small_base) in enumerate(zip(tape.bases, small.bases, strict=True)):
        try:
            layout = layout_from_shapes(large_base.size, small_base.size, len(images), len(few))
        except ValueError:
            continue
        if layout is None:
            layouts[buffer] = None
        elif buffer in tape.dense & small.dense:
            contents = [recorder.kept[initial[buffer]] for recorder in passes]
            resolved = resolve_order(layout, contents, _CHANGED_IMAGES)
            if resolved is not None:
                layouts[buffer] = resolved
    return RecordedPass(len(images), tape, layouts)
