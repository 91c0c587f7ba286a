"""Build a slice runner whose smaller batches and windows have passed the equivalence checks."""

import functools
from collections.abc import Collection

from torch import Tensor

from resilient_heads.incremental.equivalence.batch_sizes import record_smaller_batches
from resilient_heads.incremental.equivalence.window_checks import check_windows, choose_counts
from resilient_heads.incremental.recording.forward_slice import ForwardSlice
from resilient_heads.incremental.recording.recorded_pass import RecordedPass
from resilient_heads.incremental.recording.recorder import RunModel
from resilient_heads.incremental.slice_runner import SliceRunner
from resilient_heads.incremental.windows.plan import plan_windows
from resilient_heads.incremental.windows.window_runner import WindowRunner

_PARTS = (
    (128, range(1, 16), range(2, 16, 2)),
    (16, range(2, 16, 2), (4, 8, 12)),
    (0, (2, 4, 8, 12), (4, 8, 12)),
)
"""Least number of batches, and the sizes to check for whole rows and for windows, in sixteenths of a batch. Each size
takes time at the start and saves time in every batch."""


def checked_runner(
    run: RunModel, full: RecordedPass, slices: Collection[ForwardSlice], images: Tensor, batches: int
) -> SliceRunner:
    """Check windows now, smaller batches when the first is needed, and return the runner that uses them.

    If ``full``, the pass over all ``images``, has no layouts, the runner uses neither windows nor smaller batches. The
    more ``batches`` will run, the more sizes are checked.
    """
    row_parts, window_parts = next((rows, windows) for least, rows, windows in _PARTS if batches >= least)
    batch_sizes = _sizes(len(images), row_parts) if full.layouts else ()

    @functools.cache
    def smaller_passes() -> dict[int, RecordedPass]:
        return record_smaller_batches(run, full, images, batch_sizes)

    windows = _checked_windows(run, full, slices, images, (*_sizes(len(images), window_parts), len(images)))
    return SliceRunner(full, lambda size: smaller_passes().get(size), batch_sizes, windows)


def _checked_windows(
    run: RunModel, full: RecordedPass, slices: Collection[ForwardSlice], images: Tensor, counts: tuple[int, ...]
) -> WindowRunner | None:
    """Return a runner of those operations that give the same bits on windows; None if there is none."""
    unchecked = (plan_windows(forward_slice, full) for forward_slice in slices)
    steps = {step for plan in unchecked if plan is not None for step in plan.steps}
    if not steps:
        return None
    counts, exact = choose_counts(check_windows(run, full, images, steps, counts), counts)
    plans = {forward_slice.source: plan_windows(forward_slice, full, exact) for forward_slice in slices}
    return WindowRunner(full, counts, {source: plan for source, plan in plans.items() if plan is not None})


def _sizes(batch_size: int, sixteenths: Collection[int]) -> tuple[int, ...]:
    """Return the numbers of images that are such parts of a batch, ascending."""
    return tuple(sorted({batch_size * part // 16 for part in sixteenths} - {0}))
