"""Follow faults on windows around them, until they have spread or are gone."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from resilient_heads.rerun.batches import Batch
from resilient_heads.rerun.reach import Local, Plan, each, stride_of
from resilient_heads.rerun.slices import Slice
from resilient_heads.rerun.tape import Mark, Moment, View
from resilient_heads.rerun.windows import (
    Window,
    cover,
    crop,
    differs,
    input_window,
    inside,
    put_,
    run_local,
    struck_pixels,
)


@dataclass(slots=True)
class Followed:
    """Where windows stand.

    Attributes:
        images: ``(n,)``, positions in the batch of the rows that are still followed.
        size: Number of windows; those beyond ``images`` are padding.
        done: Number of operations of the slice that have been run.
        windows: By buffer.
    """

    images: Tensor
    size: int
    done: int
    windows: dict[int, Window]

    @property
    def padded(self) -> Tensor:
        """Positions in the batch for every window, padding included."""
        return torch.cat([self.images, self.images[:1].expand(self.size - len(self.images))])


class Follower:
    """Runs the first operations of slices on windows.

    Args:
        batch: The pass over a whole batch.
        counts: How many windows may be run at once, in order; the last is the size of the batch.
        plans: What is run on windows, by the struck tensor.
    """

    def __init__(self, batch: Batch, counts: tuple[int, ...], plans: Mapping[Mark, Plan]) -> None:
        self.plans = plans
        self._batch = batch
        self._counts = counts

    def follow(
        self,
        piece: Slice,
        plan: Plan,
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
        images = torch.arange(self._batch.size, device=struck.device)
        if where is not None and torch.equal(where[0], images):
            pixels: Tensor | None = torch.stack(where[2:], dim=1)
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
        by_buffer = {}
        for buffer, version in live:
            whole = self._batch.tape.roots[buffer].on(golden[buffer, version])
            by_buffer[buffer, version] = differs(state.windows[buffer], whole, state.padded)[:count]
        differ = torch.stack(list(by_buffer.values())).any(dim=0)
        settled.update(moment for moment, rows in by_buffer.items() if torch.equal(rows, differ))
        rows = differ.nonzero().flatten()
        size = min(size for size in self._counts if size >= len(rows))
        if size < state.size or not len(rows):
            chosen = torch.cat([rows, rows[:1].expand(size - len(rows) if len(rows) else 0)])
            state.images, state.size = state.images[rows], size
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
                return crop(view.on(golden[view.moment]), state.padded, torch.zeros_like(origin), (1, 1))
            start, size = input_window(local.reach, origin, local.size)
            own = state.windows.get(view.buffer)
            if own is not None and local.reach is None and own.size == size and _same(own.origin, start):
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
                values = values.masked_fill_(outside, local.reach.fill)
            return values

        result = run_local(step, local, inputs)
        if outside is not None and local.reach is not None and local.reach.fill == 0:
            # Adding the products of padding, which kernels leave out, could only turn -0 into 0.
            zero = (result == 0).flatten(1).any(dim=1) & outside.flatten(1).any(dim=1)
            if bool(zero.any()):
                return False
        state.windows[local.result] = Window(result, origin)
        return True

    def _origin(self, local: Local, state: Followed) -> Tensor | None:
        """Return where the windows of a result begin; None if they would not hold all that may have changed."""
        step = self._batch.tape.steps[local.number]
        own = [(view, state.windows[view.buffer]) for view in step.views if view.buffer in state.windows]
        first = own[0][1].origin
        last = (local.limit[0] - local.size[0], local.limit[1] - local.size[1])
        if local.reach is not None:
            return torch.minimum(local.reach.first(first).clamp_(min=0), first.new_tensor(last))
        if len(own) == 1 and stride_of(own[0][0], self._batch) == (1, 1):
            return first
        starts, ends = [], []
        for view, window in own:
            steps = each(stride_of(view, self._batch) or (1, 1), first)
            starts.append(-(-window.origin).div(steps, rounding_mode="floor"))
            end = -(-window.origin - each(window.size, first)).div(steps, rounding_mode="floor")
            ends.append(torch.minimum(end, first.new_tensor(local.limit)))
        origin = torch.minimum(torch.stack(starts).amin(dim=0), first.new_tensor(last))
        return origin if bool((torch.stack(ends).amax(dim=0) <= origin + each(local.size, first)).all()) else None


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether origins are the same."""
    return one is other or torch.equal(one, other)
