"""Run the operations after a struck tensor again, and let go of rows that have become golden."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from resilient_heads.incremental.recording.batches import Batch
from resilient_heads.incremental.recording.execute import run_step
from resilient_heads.incremental.recording.recorder import copy_memory
from resilient_heads.incremental.recording.slices import Cut, Slice
from resilient_heads.incremental.recording.tape import Moment, View
from resilient_heads.incremental.recording.words import words
from resilient_heads.incremental.windows.crops import as_tensor, paste_
from resilient_heads.incremental.windows.follow import Followed, Follower
from resilient_heads.incremental.windows.receptive_field import WindowPlan

_MOST_LOOKS = 6
"""Cuts at which rows are compared; nearly all rows that ever become golden do so soon after the fault."""
_FIRST_RUNS = 2
"""Runs in which every cut is looked at; afterwards those alone that have paid."""
_LOOK_COST = 0.3
"""What a look costs, in heavy operations."""


@dataclass(slots=True)
class Yield:
    """What looking at a cut has given so far.

    Attributes:
        seen: BatchLayout that came there.
        golden: Those of them that had become golden.
        runs: How often it was looked at.
    """

    seen: int = 0
    golden: int = 0
    runs: int = 0


@dataclass(frozen=True, slots=True)
class Played:
    """The end of a rerun.

    Attributes:
        images: ``(n,)``, positions in the batch of the rows that did not become golden on the way.
        logits: ``(n, C)``, theirs.
    """

    images: Tensor
    logits: Tensor


@dataclass(slots=True)
class _State:
    """Where a rerun stands.

    Attributes:
        batch: The pass of the present size.
        images: ``(n,)``, positions in the whole batch of the rows still followed; further rows are padding.
        roots: Memory of the buffers that depend on the struck tensor.
        picked: Golden content of the images that are followed.
    """

    batch: Batch
    images: Tensor
    roots: dict[int, Tensor]
    picked: dict[Moment, Tensor] = field(default_factory=dict)

    @property
    def padded(self) -> Tensor:
        """Positions in the whole batch for every row, padding included."""
        missing = self.batch.size - len(self.images)
        return torch.cat([self.images, self.images[:1].expand(missing)])


class Player:
    """Plays slices of one pass.

    Args:
        whole: The pass over a whole batch.
        smaller: Gives the pass over fewer images, or None where there is none.
        sizes: Numbers of images to which a batch may be reduced.
        follower: Runs windows; None: nothing is run on windows.
    """

    def __init__(
        self,
        whole: Batch,
        smaller: Callable[[int], Batch | None],
        sizes: tuple[int, ...],
        follower: Follower | None = None,
    ) -> None:
        self._whole = whole
        self._smaller = smaller
        self._sizes = sizes
        self._follower = follower
        self._yields: dict[tuple[int, int, int], Yield] = {}

    def looks(self, piece: Slice) -> tuple[Cut, ...]:
        """Return the cuts at which rows can be compared with golden ones."""
        return tuple(
            cut
            for cut in piece.cuts[:_MOST_LOOKS]
            if all(self._whole.rows.get(buffer) is not None for buffer, _ in cut.live)
        )

    def needs(self, piece: Slice) -> frozenset[Moment]:
        """Return the golden content that :meth:`play` reads."""
        plan = self._plan(piece)
        own = frozenset() if plan is None else plan.needs
        return piece.needs | own | {moment for cut in self.looks(piece) for moment in cut.live}

    def play(
        self,
        piece: Slice,
        golden: Mapping[Moment, Tensor],
        struck: Tensor,
        where: tuple[Tensor, ...] | None = None,
    ) -> Played:
        """Run what comes after a struck tensor.

        Args:
            piece: The slice.
            golden: Content of :meth:`needs`.
            struck: A tensor on memory like that of the slice's source, faulty.
            where: Index of the one element of each image that may differ, in their order; None where that is unknown.
        """
        state, done = self._begin(piece, golden, struck, where)
        cuts = {cut.step: cut for cut in self.looks(piece)}
        heavy = {cut.step for cut in piece.cuts}
        heavy_left = len(heavy.intersection(piece.steps[done:]))
        for number, frees in zip(piece.steps[done:], piece.frees[done:], strict=True):
            if number in cuts and len(state.images):
                state = self._look(piece, cuts[number], heavy_left, state, golden)
            if not len(state.images):
                break
            heavy_left -= number in heavy
            self._execute(number, state, golden)
            for buffer in frees:
                state.roots.pop(buffer, None)
        logits = state.batch.tape.logits
        assert logits is not None
        if not len(state.images):
            return Played(state.images, torch.empty((0, *logits.size[1:]), dtype=logits.dtype, device=struck.device))
        return Played(state.images, logits.on(state.roots[logits.buffer])[: len(state.images)])

    def _plan(self, piece: Slice) -> WindowPlan | None:
        """Return what of a slice is run on windows."""
        return None if self._follower is None else self._follower.plans.get(piece.source)

    def _begin(
        self, piece: Slice, golden: Mapping[Moment, Tensor], struck: Tensor, where: tuple[Tensor, ...] | None
    ) -> tuple[_State, int]:
        """Run what pays to be run on windows; return a state of whole rows, and how many operations that were."""
        plan = self._plan(piece)
        followed = self._follower.follow(piece, plan, golden, struck, where) if plan and self._follower else None
        if plan is None or followed is None:
            images = torch.arange(self._whole.size if piece.reaches_logits else 0, device=struck.device)
            return _State(self._whole, images, {piece.source.view.buffer: struck}), 0
        if not len(followed.images):
            return _State(self._whole, as_tensor(followed.images, struck), {}), followed.done
        return self._whole_rows(piece, plan.live[followed.done], followed, golden), followed.done

    def _whole_rows(
        self, piece: Slice, live: tuple[Moment, ...], followed: Followed, golden: Mapping[Moment, Tensor]
    ) -> _State:
        """Put windows into golden rows."""
        count = len(followed.images)
        images = as_tensor(followed.images, golden[live[0]])
        size = min((s for s in self._sizes if s >= count), default=self._whole.size)
        smaller = self._smaller(size) if size < self._whole.size else None
        if smaller is None or not self._fits(smaller, list(piece.steps[followed.done :])):
            state = _State(self._whole, torch.arange(self._whole.size, device=images.device), {})
            places = followed.images
        else:
            state = _State(smaller, images, {})
            places = np.arange(count)
        for buffer, version in live:
            root, where = self._whole.tape.roots[buffer], state.batch.rows[buffer]
            assert where is not None
            if state.batch is self._whole:
                rows = root.on(copy_memory(golden[buffer, version]))
            else:
                rows = where.pick(
                    root.on(golden[buffer, version]), state.padded, state.batch.shaped(buffer, images.device)
                )
            window = followed.windows[buffer]
            paste_(rows, places, window.values[:count], window.origin[:count])
            state.roots[buffer] = rows
        return state

    def _look(self, piece: Slice, cut: Cut, heavy_left: int, state: _State, golden: Mapping[Moment, Tensor]) -> _State:
        """Compare rows with golden ones where that has paid so far; go on with fewer rows if that saves work."""
        source = piece.source
        found = self._yields.setdefault((source.position, source.view.buffer, cut.step), Yield())
        if found.runs >= _FIRST_RUNS and found.golden * heavy_left < _LOOK_COST * found.seen:
            return state
        pairs = []
        for buffer, version in cut.live:
            where = self._whole.rows[buffer]
            assert where is not None
            now, dim = where.split_images(words(state.batch.tape.roots[buffer].on(state.roots[buffer])))
            before, _ = where.split_images(words(self._whole.tape.roots[buffer].on(golden[buffer, version])))
            pairs.append((now.movedim(dim, 0), before.movedim(dim, 0)))
        differ = [
            row
            for row, image in enumerate(state.images.tolist())
            if any(not torch.equal(now[row], before[image]) for now, before in pairs)
        ]
        found.runs += 1
        found.seen += len(state.images)
        found.golden += len(state.images) - len(differ)
        if not differ:
            state.images = state.images[:0]
            return state
        return self._compact(piece, cut, state, differ)

    def _compact(self, piece: Slice, cut: Cut, state: _State, differ: list[int]) -> _State:
        """Return a state of fewer rows; the same one where no smaller size fits."""
        size = min((s for s in self._sizes if s >= len(differ)), default=state.batch.size)
        smaller = self._smaller(size) if size < state.batch.size else None
        if smaller is None or not self._fits(smaller, [step for step in piece.steps if step >= cut.step]):
            return state
        rows = torch.tensor(differ, device=state.images.device)
        fewer = _State(smaller, state.images[rows], {})
        padded = torch.cat([rows, rows[:1].expand(size - len(rows))])
        for buffer, _ in cut.live:
            where = smaller.rows[buffer]
            assert where is not None
            now = state.batch.tape.roots[buffer].on(state.roots[buffer])
            fewer.roots[buffer] = where.pick(now, padded, smaller.shaped(buffer, now.device))
        return fewer

    def _fits(self, smaller: Batch, later: list[int]) -> bool:
        """Whether every buffer of some operations can be had for fewer images."""
        steps = self._whole.tape.steps
        return all(buffer in smaller.rows for step in later for buffer in steps[step].reads | steps[step].creates)

    def _execute(self, number: int, state: _State, golden: Mapping[Moment, Tensor]) -> None:
        """Run one operation on the rows that are followed."""
        if state.batch is self._whole:
            run_step(self._whole.tape.steps[number], state.roots, lambda view: view.on(golden[view.moment]))
        elif number in state.batch.inexact:
            self._execute_whole(number, state, golden)
        else:
            step = state.batch.tape.steps[number]
            run_step(step, state.roots, lambda view: self._golden_rows(view, state, golden))

    def _golden_rows(self, view: View, state: _State, golden: Mapping[Moment, Tensor]) -> Tensor:
        """Return golden content for the rows that are followed."""
        where = state.batch.rows[view.buffer]
        if where is None:
            return view.on(golden[view.moment])
        if view.moment not in state.picked:
            whole = self._whole.tape.roots[view.buffer].on(golden[view.moment])
            into = state.batch.shaped(view.buffer, whole.device)
            state.picked[view.moment] = where.pick(whole, state.padded, into)
        return view.on(state.picked[view.moment])

    def _execute_whole(self, number: int, state: _State, golden: Mapping[Moment, Tensor]) -> None:
        """Run one operation at the size of the whole batch, each row at its own place."""
        step = self._whole.tape.steps[number]
        roots = {}
        # BatchLayout that are not followed repeat one that is, so that nothing odd is computed for them.
        sources = torch.zeros(self._whole.size, dtype=torch.int64, device=state.images.device)
        sources[state.images] = torch.arange(len(state.images), device=state.images.device)
        for buffer in step.reads & state.roots.keys():
            where = state.batch.rows[buffer]
            now = state.batch.tape.roots[buffer].on(state.roots[buffer])
            roots[buffer] = now if where is None else where.pick(now, sources, self._whole.shaped(buffer, now.device))
        run_step(step, roots, lambda view: view.on(golden[view.moment]))
        for buffer in step.creates | step.writes:
            where = state.batch.rows[buffer]
            result = self._whole.tape.roots[buffer].on(roots[buffer])
            if where is not None:
                result = where.pick(result, state.padded, state.batch.shaped(buffer, result.device))
            state.roots[buffer] = result
