"""Follow faults on windows around them, until they spread too far or vanish."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from resilient_heads.incremental.recording.forward_slice import ForwardSlice
from resilient_heads.incremental.recording.recorded_pass import RecordedPass
from resilient_heads.incremental.recording.tape import BufferVersion, GoldenContent, MarkedTensor, View
from resilient_heads.incremental.windows.crops import IntArray, as_tensor, crop
from resilient_heads.incremental.windows.plan import WindowPlan, WindowStep, pixel_stride
from resilient_heads.incremental.windows.window import (
    Window,
    copy_overlap_,
    crop_input,
    crop_window,
    differs_from_golden,
    faulty_pixels,
    run_on_windows,
)


@dataclass(slots=True)
class WindowState:
    """Windows at one point of a rerun.

    Attributes:
        images: ``(n,)``, positions in the batch of the images that still differ from the golden pass, ascending.
        count: Number of windows; those beyond ``images`` are padding.
        steps_done: Number of operations of the forward slice that have run.
        windows: By buffer.
        differing: Content that differs in every image that is left, so that comparing it would drop none.
    """

    images: IntArray
    count: int
    windows: dict[int, Window]
    steps_done: int = 0
    differing: set[BufferVersion] = field(default_factory=set)

    @property
    def padded_images(self) -> IntArray:
        """Positions in the batch for every window; padding repeats the last image."""
        return np.pad(self.images, (0, self.count - len(self.images)), "edge")


class WindowRunner:
    """Runs the first operations of forward slices on windows.

    Args:
        full: The pass over the full batch.
        counts: Numbers of windows that may run at once, ascending; the last is the size of the batch.
        plans: By source, what runs on windows.
    """

    def __init__(self, full: RecordedPass, counts: tuple[int, ...], plans: Mapping[MarkedTensor, WindowPlan]) -> None:
        self.plans = plans
        self._full = full
        self._counts = counts

    def run(
        self,
        forward_slice: ForwardSlice,
        golden: GoldenContent,
        faulty: Tensor,
        index: tuple[Tensor, ...] | None = None,
    ) -> WindowState | None:
        """Run the operations after a faulty tensor, as far as they are planned to run on windows.

        For the arguments see :meth:`SliceRunner.run`; without ``index``, the faulty pixels are found by comparison.

        Returns:
            The windows from which whole rows continue; None if nothing runs on windows.
        """
        plan = self.plans.get(forward_slice.source)
        if plan is None:
            return None
        source = forward_slice.source.view
        images = np.arange(self._full.batch_size)
        if index is not None and np.array_equal(index[0].cpu().numpy(), images):
            pixels: IntArray | None = torch.stack(index[2:], dim=1).cpu().numpy()
        else:
            pixels = faulty_pixels(source.on(faulty), source.on(golden[source.content]))
        if pixels is None:
            return None
        window = Window(crop(source.on(faulty), images, pixels, (1, 1)), pixels)
        state = WindowState(images, len(images), {source.buffer: window})
        for position, live in enumerate(plan.live):
            if position in plan.comparison_points and not state.differing.intersection(live):
                self._drop_golden_images(live, state, golden)
            if not len(state.images) or position == len(plan.steps):
                break
            if not self._run_step(plan.steps[position], state, golden):
                break
            for buffer in forward_slice.dead_after[position]:
                state.windows.pop(buffer, None)
            state.steps_done += 1
        return state

    def _drop_golden_images(self, live: tuple[BufferVersion, ...], state: WindowState, golden: GoldenContent) -> None:
        """Drop the images whose windows have become golden, if this allows fewer windows."""
        count = len(state.images)
        differs = {}
        for content in live:
            whole = self._full.tape.bases[content.buffer].on(golden[content])
            different = differs_from_golden(state.windows[content.buffer], whole, state.padded_images)[:count]
            differs[content] = different.cpu().numpy()
        any_differs = np.stack(list(differs.values())).any(axis=0)
        state.differing.update(content for content, rows in differs.items() if np.array_equal(rows, any_differs))
        rows = np.flatnonzero(any_differs)
        smallest = min(allowed for allowed in self._counts if allowed >= len(rows))
        if smallest < state.count or not len(rows):
            state.images, state.count = state.images[rows], smallest
            padded_rows = np.pad(rows, (0, smallest - len(rows)), "edge") if len(rows) else rows
            state.windows = {buffer: window.rows(padded_rows) for buffer, window in state.windows.items()}
        elif len(rows) < count:
            state.differing.clear()  # images that have become golden stay among the others

    def _run_step(self, window_step: WindowStep, state: WindowState, golden: GoldenContent) -> bool:
        """Run one operation on windows; return False if whole rows have to run it."""
        step = self._full.tape.steps[window_step.number]
        origin = self._result_origin(window_step, state)
        if origin is None:
            return False
        inputs, padding = {}, None
        for view in step.views:
            inputs[view], mask = self._input(view, window_step, state, golden, origin)
            padding = padding if mask is None else mask
        result = run_on_windows(step, window_step, inputs.__getitem__)
        if padding is not None and window_step.field is not None and window_step.field.fill == 0:
            # Kernels skip padding; adding its products instead can only turn -0 into 0.
            padded = as_tensor(np.flatnonzero(padding.any(axis=(1, 2, 3))), result)
            if bool((result.index_select(0, padded) == 0).any()):
                return False
        state.windows[window_step.result] = Window(result, origin)
        return True

    def _input(
        self, view: View, window_step: WindowStep, state: WindowState, golden: GoldenContent, origin: IntArray
    ) -> tuple[Tensor, np.typing.NDArray[np.bool_] | None]:
        """Return what result windows at ``origin`` read of an argument, and which of its pixels are padding."""
        if self._full.layouts.get(view.buffer) is None:
            return view.on(golden[view.content]), None
        window = state.windows.get(view.buffer)
        if window is None:
            return crop_input(window_step, view.on(golden[view.content]), state.padded_images, origin)
        start, size = window_step.input_window(origin)
        stride = pixel_stride(view, self._full) or (1, 1)
        if stride == (1, 1) and window.size == size and np.array_equal(window.origin, start):
            return window.values, None
        values = crop_window(window, start, size, stride)
        if values is not None:
            return values, None
        values, padding = crop_input(window_step, view.on(golden[view.content]), state.padded_images, origin)
        copy_overlap_(values, window, start, stride)
        return values, padding

    def _result_origin(self, window_step: WindowStep, state: WindowState) -> IntArray | None:
        """Return the origin of the result windows; None if they cannot hold all that may have changed."""
        step = self._full.tape.steps[window_step.number]
        followed = [(view, state.windows[view.buffer]) for view in step.views if view.buffer in state.windows]
        first_view, first_window = followed[0]
        last = window_step.map_size[0] - window_step.size[0], window_step.map_size[1] - window_step.size[1]
        if window_step.field is not None:
            return window_step.field.first_output(first_window.origin).clip(0, last)
        if len(followed) == 1 and pixel_stride(first_view, self._full) == (1, 1):
            return first_window.origin
        starts, ends = [], []
        for view, window in followed:
            stride = pixel_stride(view, self._full) or (1, 1)
            starts.append(-(-window.origin // stride))
            ends.append((-((-window.origin - window.size) // stride)).clip(max=window_step.map_size))
        origin: IntArray = np.minimum.reduce(starts).clip(max=last)
        return origin if bool((np.maximum.reduce(ends) <= origin + window_step.size).all()) else None
