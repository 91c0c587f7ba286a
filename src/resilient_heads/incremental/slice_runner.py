"""Run a forward slice again after a change of its source, on as few rows as possible."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from resilient_heads.incremental.recording.execute import run_step
from resilient_heads.incremental.recording.forward_slice import ComparisonPoint, ForwardSlice
from resilient_heads.incremental.recording.recorded_pass import RecordedPass
from resilient_heads.incremental.recording.tape import BufferVersion, GoldenContent, View, copy_memory
from resilient_heads.incremental.recording.words import words
from resilient_heads.incremental.windows.crops import as_tensor, paste_
from resilient_heads.incremental.windows.window_runner import WindowRunner, WindowState

_COMPARISON_POINTS = 6
"""Points per slice at which rows are compared: most rows that ever become golden do so soon after the fault."""
_FIRST_COMPARISONS = 2
"""Comparisons at each point before the statistics decide whether another one pays."""
_COMPARISON_COST = 0.3
"""Cost of comparing a row, in expensive operations on it."""


@dataclass(slots=True)
class _Statistics:
    """Comparisons at one point so far, the rows that they compared, and how many of these had become golden."""

    comparisons: int = 0
    rows: int = 0
    golden_rows: int = 0


@dataclass(slots=True)
class _RowState:
    """The state of a rerun between two operations.

    Attributes:
        forward_slice: What to run.
        golden: Golden content.
        recorded: The pass of the present batch size.
        images: ``(n,)``, positions in the full batch of the rows that still run; the rows behind them are padding.
        buffers: Memory of the buffers that depend on the source.
        golden_rows: Golden content of the rows that still run.
        steps_done: Number of operations of the slice that have run.
    """

    forward_slice: ForwardSlice
    golden: GoldenContent
    recorded: RecordedPass
    images: Tensor
    buffers: dict[int, Tensor] = field(default_factory=dict)
    golden_rows: dict[BufferVersion, Tensor] = field(default_factory=dict)
    steps_done: int = 0

    @property
    def padded_images(self) -> Tensor:
        """Positions in the full batch for every row; padding repeats the first image."""
        missing = self.recorded.batch_size - len(self.images)
        return torch.cat([self.images, self.images[:1].expand(missing)])

    def base(self, buffer: int) -> Tensor:
        """Return the base tensor of a buffer."""
        return self.recorded.tape.bases[buffer].on(self.buffers[buffer])


class SliceRunner:
    """Runs forward slices of one recorded pass.

    Args:
        full: The pass over the full batch.
        smaller: Returns the pass over so many images; None if there is none.
        batch_sizes: Numbers of images to which the batch may shrink; by default it does not.
        windows: Runs the first operations on windows; None to run all on whole rows.
    """

    def __init__(
        self,
        full: RecordedPass,
        smaller: Callable[[int], RecordedPass | None] = lambda size: None,
        batch_sizes: Sequence[int] = (),
        windows: WindowRunner | None = None,
    ) -> None:
        self._full = full
        self._smaller = smaller
        self._batch_sizes = batch_sizes
        self._windows = WindowRunner(full, (), {}) if windows is None else windows
        self._statistics: dict[tuple[int, int, int], _Statistics] = {}

    def golden_inputs(self, forward_slice: ForwardSlice) -> frozenset[BufferVersion]:
        """Return the golden content that :meth:`run` reads."""
        plan = self._windows.plans.get(forward_slice.source)
        by_windows = frozenset() if plan is None else plan.golden_inputs
        compared = {content for point in self._comparison_points(forward_slice) for content in point.live}
        return forward_slice.golden_inputs | by_windows | compared | {forward_slice.source.view.content}

    def run(
        self,
        forward_slice: ForwardSlice,
        golden: GoldenContent,
        golden_logits: Tensor,
        faulty: Tensor,
        index: tuple[Tensor, ...] | None = None,
    ) -> Tensor:
        """Run what depends on a faulty tensor, and return the logits of the batch, ``(N, C)``.

        Args:
            forward_slice: What to run again.
            golden: Content of :meth:`golden_inputs`.
            golden_logits: ``(N, C)``; rows that become golden keep theirs.
            faulty: The faulty tensor on memory like that of the slice's source.
            index: Index of the one faulty element of each image, in their order; None if it is not known.
        """
        state = self._start(forward_slice, golden, faulty, index)
        points = {point.step: point for point in self._comparison_points(forward_slice)}
        for position in range(state.steps_done, len(forward_slice.steps)):
            number = forward_slice.steps[position]
            if number in points and len(state.images):
                state = self._drop_golden_rows(state, points[number])
            if not len(state.images):
                break
            self._run_step(state, number)
            for buffer in forward_slice.dead_after[position]:
                state.buffers.pop(buffer, None)
        logits = golden_logits.clone()
        if len(state.images):
            view = state.recorded.tape.logits
            assert view is not None
            logits[state.images] = view.on(state.buffers[view.buffer])[: len(state.images)]
        return logits

    def _comparison_points(self, forward_slice: ForwardSlice) -> list[ComparisonPoint]:
        """Return the points at which rows can be compared with golden ones."""
        points, layouts = forward_slice.comparison_points[:_COMPARISON_POINTS], self._full.layouts
        return [point for point in points if all(layouts.get(buffer) is not None for buffer, _ in point.live)]

    def _start(
        self, forward_slice: ForwardSlice, golden: GoldenContent, faulty: Tensor, index: tuple[Tensor, ...] | None
    ) -> _RowState:
        """Run the first operations on windows, and return the rows that continue."""
        windows = self._windows.run(forward_slice, golden, faulty, index)
        if windows is not None and len(windows.images):
            return self._paste_windows(forward_slice, golden, windows)
        count = self._full.batch_size if windows is None and forward_slice.reaches_logits else 0
        buffers = {forward_slice.source.view.buffer: faulty}
        return _RowState(forward_slice, golden, self._full, torch.arange(count, device=faulty.device), buffers)

    def _paste_windows(self, forward_slice: ForwardSlice, golden: GoldenContent, windows: WindowState) -> _RowState:
        """Return golden rows with windows pasted into them."""
        live = self._windows.plans[forward_slice.source].live[windows.steps_done]
        count = len(windows.images)
        images = as_tensor(windows.images, golden[live[0]])
        smaller = self._smaller_pass(count, self._full, forward_slice.steps[windows.steps_done :])
        if smaller is None:
            every = torch.arange(self._full.batch_size, device=images.device)
            state, rows = _RowState(forward_slice, golden, self._full, every), windows.images
        else:
            state, rows = _RowState(forward_slice, golden, smaller, images), np.arange(count)
        state.steps_done = windows.steps_done
        for content in live:
            base, window = self._full.tape.bases[content.buffer], windows.windows[content.buffer]
            if smaller is None:
                maps = base.on(copy_memory(golden[content]))
            else:
                maps = smaller.select_images(content.buffer, base.on(golden[content]), state.padded_images)
            paste_(maps, rows, window.values[:count], window.origin[:count])
            state.buffers[content.buffer] = maps
        return state

    def _drop_golden_rows(self, state: _RowState, point: ComparisonPoint) -> _RowState:
        """Compare rows with golden ones if that has paid so far; continue with fewer rows if that saves work."""
        source = state.forward_slice.source
        key = source.steps_before, source.view.buffer, point.step
        statistics = self._statistics.setdefault(key, _Statistics())
        expensive_left = sum(later.step >= point.step for later in state.forward_slice.comparison_points)
        saved, cost = statistics.golden_rows * expensive_left, _COMPARISON_COST * statistics.rows
        if statistics.comparisons >= _FIRST_COMPARISONS and saved < cost:
            return state
        rows = self._faulty_rows(state, point)
        statistics.comparisons += 1
        statistics.rows += len(state.images)
        statistics.golden_rows += len(state.images) - len(rows)
        if not rows:
            state.images = state.images[:0]
            return state
        later = tuple(step for step in state.forward_slice.steps if step >= point.step)
        smaller = self._smaller_pass(len(rows), state.recorded, later)
        if smaller is None:
            return state
        kept = torch.tensor(rows, device=state.images.device)
        padded = torch.cat([kept, kept[:1].expand(smaller.batch_size - len(kept))])
        buffers = {buffer: smaller.select_images(buffer, state.base(buffer), padded) for buffer, _ in point.live}
        return _RowState(state.forward_slice, state.golden, smaller, state.images[kept], buffers)

    def _faulty_rows(self, state: _RowState, point: ComparisonPoint) -> list[int]:
        """Return the rows that differ from golden ones in some bit."""
        pairs = []
        for content in point.live:
            layout = self._full.layout(content.buffer)
            faulty, dim = layout.split_images(words(state.base(content.buffer)))
            expected, _ = layout.split_images(words(self._full.tape.bases[content.buffer].on(state.golden[content])))
            pairs.append((faulty.movedim(dim, 0), expected.movedim(dim, 0)))
        return [
            row
            for row, image in enumerate(state.images.tolist())
            if any(not torch.equal(faulty[row], expected[image]) for faulty, expected in pairs)
        ]

    def _smaller_pass(self, rows: int, present: RecordedPass, later: tuple[int, ...]) -> RecordedPass | None:
        """Return a pass smaller than the present one that has room for some rows, if it can run the later steps."""
        size = min((size for size in self._batch_sizes if size >= rows), default=present.batch_size)
        smaller = self._smaller(size) if size < present.batch_size else None
        steps = [self._full.tape.steps[number] for number in later]
        if smaller is None or any(b not in smaller.layouts for step in steps for b in step.reads | step.creates):
            return None
        return smaller

    def _run_step(self, state: _RowState, number: int) -> None:
        """Run one operation on the rows that still run."""
        if state.recorded is self._full:
            run_step(self._full.tape.steps[number], state.buffers, lambda view: view.on(state.golden[view.content]))
        elif number in state.recorded.inexact:
            self._run_step_on_full_batch(state, number)
        else:
            step = state.recorded.tape.steps[number]
            run_step(step, state.buffers, lambda view: self._golden_rows(state, view))

    def _golden_rows(self, state: _RowState, view: View) -> Tensor:
        """Return golden content for the rows that still run."""
        if state.recorded.layouts[view.buffer] is None:
            return view.on(state.golden[view.content])
        if view.content not in state.golden_rows:
            base = self._full.tape.bases[view.buffer].on(state.golden[view.content])
            rows = state.recorded.select_images(view.buffer, base, state.padded_images)
            state.golden_rows[view.content] = rows
        return view.on(state.golden_rows[view.content])

    def _run_step_on_full_batch(self, state: _RowState, number: int) -> None:
        """Run one operation at the size of the full batch, each row at the position of its image."""
        step = self._full.tape.steps[number]
        # The rows of other images repeat the first row, so that they hold no unusual values.
        rows = torch.zeros(self._full.batch_size, dtype=torch.int64, device=state.images.device)
        rows[state.images] = torch.arange(len(state.images), device=state.images.device)
        buffers = {}
        for buffer in step.reads & state.buffers.keys():
            base = state.base(buffer)
            by_image = state.recorded.layouts[buffer] is not None
            buffers[buffer] = self._full.select_images(buffer, base, rows) if by_image else base
        run_step(step, buffers, lambda view: view.on(state.golden[view.content]))
        for buffer in step.creates | step.writes:
            result = self._full.tape.bases[buffer].on(buffers[buffer])
            if state.recorded.layouts[buffer] is not None:
                result = state.recorded.select_images(buffer, result, state.padded_images)
            state.buffers[buffer] = result
