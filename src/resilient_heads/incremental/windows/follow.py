"""Follow faults on windows around them, until they have spread or are gone."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from resilient_heads.incremental.recording.batches import Batch
from resilient_heads.incremental.recording.slices import Slice
from resilient_heads.incremental.recording.tape import Mark, Moment, View
from resilient_heads.incremental.windows.crops import Numbers, as_tensor, crop, inside
from resilient_heads.incremental.windows.receptive_field import Local, WindowPlan, stride_of
from resilient_heads.incremental.windows.windows import (
    Window,
    cover,
    differs,
    input_window,
    put_,
    run_local,
    struck_pixels,
)


@dataclass(slots=True)
class Followed:
    """Where windows stand.

    Attributes:
        images: ``(n,)``, positions in the batch of the rows that are still followed, in order.
        size: Number of windows; those beyond ``images`` are padding.
        done: Number of operations of the slice that have been run.
        windows: By buffer.
    """

    images: Numbers
    size: int
    done: int
    windows: dict[int, Window]

    @property
    def padded(self) -> Numbers:
        """Positions in the batch for every window, padding included."""
        return np.pad(self.images, (0, self.size - len(self.images)), "edge")


class Follower:
    """Runs the first operations of slices on windows.

    Args:
        batch: The pass over a whole batch.
        counts: How many windows may be run at once, in order; the last is the size of the batch.
        plans: What is run on windows, by the struck tensor.
    """

    def __init__(self, batch: Batch, counts: tuple[int, ...], plans: Mapping[Mark, WindowPlan]) -> None:
        self.plans = plans
        self._batch = batch
        self._counts = counts

    def follow(
        self,
        piece: Slice,
        plan: WindowPlan,
        golden: Mapping[Moment, Tensor],
        struck: Tensor,
        where: tuple[Tensor, ...] | None = None,
    ) -> Followed | None:
        """Run what comes after a struck tensor as far as it pays.

        Args:
            piece: The slice.
            plan: Its operations on windows.
            golden: Content that they need.
            struck: A tensor on memory like that of the slice's source, faulty.
            where: Index of the one element of each image that may differ, in their order; None: they are compared.

        Returns:
            What is left to be run in full; None if an image is struck in several pixels.
        """
        source = piece.source.view
        images = np.arange(self._batch.size)
        if where is not None and np.array_equal(where[0].cpu().numpy(), images):
            pixels: Numbers | None = torch.stack(where[2:], dim=1).cpu().numpy()
        else:
            pixels = struck_pixels(source.on(struck), source.on(golden[source.moment]))
        if pixels is None:
            return None
        values = crop(source.on(struck), images, pixels, (1, 1))
        state = Followed(images, self._batch.size, 0, {source.buffer: Window(values, pixels)})
        settled: set[Moment] = set()
        for position, live in enumerate(plan.live):
            if position in plan.looks and not settled.intersection(live):
                self._look(live, state, golden, settled)
            if not len(state.images) or position == len(plan.locals):
                break
            if not self._run(plan.locals[position], state, golden):
                break
            for buffer in piece.frees[position]:
                state.windows.pop(buffer, None)
            state.done += 1
        return state

    def _look(
        self, live: tuple[Moment, ...], state: Followed, golden: Mapping[Moment, Tensor], settled: set[Moment]
    ) -> None:
        """Let go of rows that have become golden; note tensors in which all that are left differ."""
        count = len(state.images)
        by_moment = {}
        for buffer, version in live:
            whole = self._batch.tape.roots[buffer].on(golden[buffer, version])
            found = differs(state.windows[buffer], whole, state.padded)[:count]
            by_moment[buffer, version] = found.cpu().numpy()
        differ = np.stack(list(by_moment.values())).any(axis=0)
        settled.update(moment for moment, rows in by_moment.items() if np.array_equal(rows, differ))
        rows = np.flatnonzero(differ)
        size = min(size for size in self._counts if size >= len(rows))
        if size < state.size or not len(rows):
            state.images, state.size = state.images[rows], size
            chosen = np.pad(rows, (0, size - len(rows)), "edge") if len(rows) else rows
            state.windows = {buffer: window.rows(chosen) for buffer, window in state.windows.items()}
        elif len(rows) < count:
            settled.clear()  # rows that are golden stay among the others

    def _run(self, local: Local, state: Followed, golden: Mapping[Moment, Tensor]) -> bool:
        """Run one operation on windows; return whether that was possible."""
        step = self._batch.tape.steps[local.number]
        origin = self._origin(local, state)
        if origin is None:
            return False
        outside = None

        def inputs(view: View) -> Tensor:
            nonlocal outside
            if self._batch.rows.get(view.buffer) is None:
                return view.on(golden[view.moment])
            if local.reach is None and view.size[2:] == (1, 1) and view.buffer not in state.windows:
                return crop(view.on(golden[view.moment]), state.padded, np.zeros_like(origin), (1, 1))
            start, size = input_window(local.reach, origin, local.size)
            own = state.windows.get(view.buffer)
            if own is not None and local.reach is None and own.size == size and np.array_equal(own.origin, start):
                return own.values
            steps = stride_of(view, self._batch) or (1, 1)
            values = None if own is None else cover(own, start, size, steps)
            if values is not None:
                return values
            values = crop(view.on(golden[view.moment]), state.padded, start, size)
            if own is not None:
                put_(values, own, start, steps)
            within = None if local.reach is None else inside((view.size[2], view.size[3]), start, size)
            if within is not None and local.reach is not None:
                outside = ~within
                values.masked_fill_(as_tensor(outside, values), local.reach.fill)
            return values

        result = run_local(step, local, inputs)
        if outside is not None and local.reach is not None and local.reach.fill == 0:
            # Adding the products of padding, which kernels leave out, could only turn -0 into 0.
            padded = as_tensor(np.flatnonzero(outside.any(axis=(1, 2, 3))), result)
            if bool((result.index_select(0, padded) == 0).any()):
                return False
        state.windows[local.result] = Window(result, origin)
        return True

    def _origin(self, local: Local, state: Followed) -> Numbers | None:
        """Return where the windows of a result begin; None if they would not hold all that may have changed."""
        step = self._batch.tape.steps[local.number]
        own = [(view, state.windows[view.buffer]) for view in step.views if view.buffer in state.windows]
        first = own[0][1].origin
        last = (local.limit[0] - local.size[0], local.limit[1] - local.size[1])
        if local.reach is not None:
            return local.reach.first(first).clip(0, last)
        if len(own) == 1 and stride_of(own[0][0], self._batch) == (1, 1):
            return first
        starts, ends = [], []
        for view, window in own:
            steps = stride_of(view, self._batch) or (1, 1)
            starts.append(-(-window.origin // steps))
            ends.append((-((-window.origin - window.size) // steps)).clip(max=local.limit))
        origin: Numbers = np.minimum.reduce(starts).clip(max=last)
        return origin if bool((np.maximum.reduce(ends) <= origin + local.size).all()) else None
