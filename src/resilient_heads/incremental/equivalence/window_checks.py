"""Try which operations give the same bits on windows as on whole maps."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from resilient_heads.incremental.recording.batches import Batch
from resilient_heads.incremental.recording.execute import as_list
from resilient_heads.incremental.recording.operators import EXACT, enough, fits, noise_like, rounds
from resilient_heads.incremental.recording.recorder import Run, copy_memory
from resilient_heads.incremental.recording.tape import View, flat_tensors, replace_views
from resilient_heads.incremental.recording.words import words
from resilient_heads.incremental.windows.crops import Numbers, as_tensor, crop, inside
from resilient_heads.incremental.windows.receptive_field import Local
from resilient_heads.incremental.windows.windows import input_window, run_local

_NEARLY_ALL = 0.9
_TIMES = 8
"""How many times as many windows are tried at once, at most, as it takes to be everywhere."""


def try_windows(
    run: Run, batch: Batch, inputs: Tensor, wanted: Collection[Local], counts: Sequence[int]
) -> dict[Local, frozenset[int]]:
    """Run operations on windows of a pass, in every row and every column of their results, and compare the bits.

    Args:
        run: Runs the model.
        batch: The recorded pass.
        inputs: Its images.
        wanted: What to try.
        counts: Numbers of windows that may be run at once.

    Returns:
        Operation to the numbers at which every bit was the same.
    """
    trial = _Windows(batch, wanted, counts)
    with trial:
        run(None, inputs)
    return dict.fromkeys(wanted, frozenset()) if trial.strayed else trial.able


def settle(found: Mapping[Local, frozenset[int]], counts: Sequence[int]) -> tuple[tuple[int, ...], frozenset[Local]]:
    """Choose the numbers of windows that nearly all operations take, and the operations that take all of these.

    Args:
        found: See :func:`try_windows`.
        counts: Numbers of windows; the last is that of a whole batch, which is always kept.
    """
    able = [own for own in found.values() if counts[-1] in own]
    kept = tuple(c for c in counts if c == counts[-1] or sum(c in own for own in able) >= _NEARLY_ALL * len(able))
    return kept, frozenset(local for local, own in found.items() if own >= set(kept))


class _Windows(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Repeats operations of a pass on windows."""

    def __init__(self, batch: Batch, wanted: Collection[Local], counts: Sequence[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.able: dict[Local, frozenset[int]] = dict.fromkeys(wanted, frozenset())
        self.strayed = False
        self._batch, self._counts = batch, counts
        self._wanted: dict[int, list[Local]] = {}
        for local in wanted:
            self._wanted.setdefault(local.number, []).append(local)
        self._numbers: Iterator[int] = iter(range(len(batch.tape.steps)))

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation on whole maps and on windows."""
        kwargs = kwargs or {}
        number, given = next(self._numbers, -1), flat_tensors((args, tuple(kwargs.values())))
        self.strayed |= number < 0 or not fits(self._batch.tape.steps[number], func, given)
        if self.strayed or number not in self._wanted:
            return func(*args, **kwargs)
        step = self._batch.tape.steps[number]
        kind = func._schema.name.removeprefix("aten::")
        tensors = {
            view: copy_memory(tensor) if view.buffer in step.writes else tensor
            for view, tensor in zip(step.views, given, strict=True)
        }
        result = func(*args, **kwargs)
        whole = as_list(result)[0]
        rest: dict[Local, tuple[Numbers, int]] = {}
        for local in self._wanted[number]:
            own = whole.shape[1] * local.size[0] * local.size[1]
            tiles = _tiles(local, self._batch.size, enough(whole.dtype) // own)
            needed = rounds(kind, own * len(tiles), whole.dtype)
            # What treats every element alike is tried for shapes alone.
            seen = tiles[:1] if kind in EXACT else tiles
            if needed is not None and self._agrees(local, tensors, whole, self._counts[-1], seen):
                self.able[local] = frozenset(self._counts)
                rest[local] = tiles, needed
        for seed in range(max((needed for _, needed in rest.values()), default=0)):
            generator = torch.Generator().manual_seed(seed)
            noise = {view: self._noise(view, tensor, generator) for view, tensor in tensors.items()}
            again = func(
                *(replace_views(value, noise.__getitem__) for value in step.args),
                **{name: replace_views(value, noise.__getitem__) for name, value in step.kwargs},
            )
            for local, (tiles, needed) in rest.items():
                if seed < needed:
                    self.able[local] = self._agreeing(local, noise, as_list(again)[0], self.able[local], tiles)
        return result

    def _noise(self, view: View, tensor: Tensor, generator: torch.Generator) -> Tensor:
        """Return random maps for maps, and all else as it is."""
        return tensor if self._batch.rows.get(view.buffer) is None else noise_like(tensor, generator)

    def _agreeing(
        self, local: Local, tensors: dict[View, Tensor], result: Tensor, counts: frozenset[int], tiles: Numbers
    ) -> frozenset[int]:
        """Return those numbers of windows at which they have the bits of the whole; none if all at once have not."""
        if self._counts[-1] not in counts or not self._agrees(local, tensors, result, self._counts[-1], tiles):
            return frozenset()
        fewer = counts - {self._counts[-1]}
        return counts - {count for count in fewer if not self._agrees(local, tensors, result, count, tiles)}

    def _agrees(self, local: Local, tensors: dict[View, Tensor], result: Tensor, count: int, tiles: Numbers) -> bool:
        """Whether windows, so many at once, give the bits of the whole."""
        step = self._batch.tape.steps[local.number]
        for part in tiles[np.arange(-(-len(tiles) // count) * count) % len(tiles)].reshape(-1, count, 3):
            images, origin = part[:, 0], part[:, 1:]
            try:
                got = run_local(step, local, lambda view: self._cut(local, view, tensors[view], images, origin))  # noqa: B023
            except (IndexError, RuntimeError):
                return False
            expected = crop(result, images, origin, local.size)
            if got.shape != expected.shape or not torch.equal(words(got), words(expected)):
                return False
        return True

    def _cut(self, local: Local, view: View, tensor: Tensor, images: Numbers, origin: Numbers) -> Tensor:
        """Return what windows read of an argument."""
        if self._batch.rows.get(view.buffer) is None:
            return tensor
        if local.reach is None and tensor.shape[2:] == (1, 1):
            return crop(tensor, images, np.zeros_like(origin), (1, 1))
        start, size = input_window(local.reach, origin, local.size)
        values = crop(tensor, images, start, size)
        within = inside((tensor.shape[2], tensor.shape[3]), start, size)
        if within is not None and local.reach is not None:
            values.masked_fill_(as_tensor(~within, values), local.reach.fill)
        return values


def _tiles(local: Local, batch: int, least: int) -> Numbers:
    """Return images and origins of windows that lie in every row, every column and all corners; ``(n, 3)``.

    Args:
        local: What gives the windows.
        batch: Number of images.
        least: How many windows are wanted; no more than a few times those that it takes to be everywhere.
    """
    ys, xs = (
        np.append(np.arange(0, whole - own + 1, own), whole - own)
        for own, whole in zip(local.size, local.limit, strict=True)
    )
    along = np.arange(max(len(ys), len(xs)))
    lines = np.stack([ys[along % len(ys)], xs[along % len(xs)]], axis=1)
    corners = np.array([[y, x] for y in ys[[0, -1]] for x in xs[[0, -1]]])
    more = min(least, _TIMES * (len(lines) + 4)) - len(lines) - 4
    anywhere = np.random.default_rng(0).integers(0, (ys[-1] + 1, xs[-1] + 1), (max(more, 0), 2))
    origins = np.concatenate([lines, corners, anywhere])
    return np.column_stack([np.arange(len(origins)) % batch, origins])
