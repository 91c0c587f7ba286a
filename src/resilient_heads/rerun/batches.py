"""The same pass at another batch size: where each image lies, and which operations give the same bits."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from resilient_heads.rerun.execute import as_list, run_step
from resilient_heads.rerun.recorder import Run, copy_memory, record
from resilient_heads.rerun.rows import Rows, rows_from_shapes, settle_order, words
from resilient_heads.rerun.tape import Step, Tape, View, flat_tensors


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
    rows: dict[int, Rows | None]
    inexact: frozenset[int] = frozenset()

    def shaped(self, buffer: int, device: torch.device) -> Tensor:
        """Return new memory like that of a buffer."""
        root = self.tape.roots[buffer]
        return torch.empty_strided(root.size, root.stride, dtype=root.dtype, device=device)


def whole_batch(run: Run, tape: Tape, inputs: Tensor) -> Batch:
    """Find where the images of a batch lie, by running three of them twice, one of them changed.

    Args:
        run: Runs the model.
        tape: The pass over all images.
        inputs: All images, at least four.
    """
    few = inputs[torch.tensor([0, 1, 2], device=inputs.device)]
    changed = few.clone()
    changed[1] = few[1].flip(-1) * -1.5 + few[0] * 0.25
    recorded, _ = record(run, few)
    small = recorded.tape
    if [step.func for step in small.steps] != [step.func for step in tape.steps]:
        return Batch(len(inputs), tape, {})
    first, second = _Contents(small), _Contents(small)
    for contents, images in ((first, few), (second, changed)):
        with contents:
            run(None, images)
    rows: dict[int, Rows | None] = {}
    for contents, images in ((first, few), (second, changed)):
        contents.made[small.images] = images
    for buffer, (many, own) in enumerate(zip(tape.roots, small.roots, strict=True)):
        try:
            found = rows_from_shapes(many.size, own.size, len(inputs), len(few))
        except ValueError:
            continue
        if found is None:
            rows[buffer] = None
        elif buffer in first.made and buffer in second.made and buffer in tape.whole & small.whole:
            settled = settle_order(found, first.made[buffer], second.made[buffer], 1)
            if settled is not None:
                rows[buffer] = settled
    return Batch(len(inputs), tape, rows)


def smaller_batch(run: Run, whole: Batch, inputs: Tensor, size: int) -> Batch | None:
    """Record a pass over fewer images, and try each operation on both sizes.

    Returns:
        The smaller pass, or None if it does other operations.
    """
    fewer = inputs[:size].clone(memory_format=torch.preserve_format)
    recorded, _ = record(run, fewer)
    small, tape = recorded.tape, whole.tape
    if [step.func for step in small.steps] != [step.func for step in tape.steps]:
        return None
    rows = {buffer: where for buffer, where in whole.rows.items() if buffer in small.whole or where is None}
    for buffer, where in rows.items():
        expected = list(tape.roots[buffer].size)
        if where is not None:
            expected[where.dim] = where.fold * size
        if tuple(expected) != small.roots[buffer].size:
            return None
    chosen = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))[:size]
    trial = _BothSizes(whole, Batch(size, small, rows), chosen.to(inputs.device))
    with trial:
        run(None, inputs)
    return Batch(size, small, rows, frozenset(trial.inexact))


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


class _BothSizes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Repeats each operation of a pass on the rows of some images, and notes where a bit differs."""

    def __init__(self, whole: Batch, small: Batch, images: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inexact: set[int] = set()
        self._whole, self._small, self._images = whole, small, images
        self._numbers: Iterator[int] = iter(range(len(whole.tape.steps)))

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation on the whole batch and on a part of it."""
        kwargs = kwargs or {}
        number = next(self._numbers)
        step = self._whole.tape.steps[number]
        involved = step.reads | step.creates
        if step.is_view or all(self._small.rows.get(buffer, 0) is None for buffer in involved):
            return func(*args, **kwargs)
        tensors = flat_tensors((args, tuple(kwargs.values())))
        try:
            roots = self._fewer(step, tensors)
        except (KeyError, RuntimeError):
            self.inexact.add(number)
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        after = {view.buffer: tensor for view, tensor in zip(step.views, tensors, strict=True)}
        for view, value in zip(step.outputs, as_list(result), strict=True):
            if view is not None:
                after[view.buffer] = value
        try:
            run_step(self._small.tape.steps[number], roots, _nothing)
            same = all(self._equal(buffer, after, roots) for buffer in step.creates | step.writes)
        except (KeyError, RuntimeError):
            same = False
        if not same:
            self.inexact.add(number)
        return result

    def _fewer(self, step: Step, tensors: list[Tensor]) -> dict[int, Tensor]:
        """Return the memory of the smaller operation."""
        roots: dict[int, Tensor] = {}
        for view, tensor in zip(step.views, tensors, strict=True):
            if view.buffer in roots:
                continue
            where = self._small.rows[view.buffer]
            if where is None:
                roots[view.buffer] = copy_memory(tensor) if view.buffer in step.writes else tensor
            else:
                roots[view.buffer] = self._pick(view.buffer, where, tensor)
        return roots

    def _pick(self, buffer: int, where: Rows, tensor: Tensor) -> Tensor:
        """Return the rows of some images on memory of their own."""
        root = self._whole.tape.roots[buffer].on(tensor)
        return where.pick(root, self._images, self._small.shaped(buffer, tensor.device))

    def _equal(self, buffer: int, after: dict[int, Tensor], roots: dict[int, Tensor]) -> bool:
        """Whether the rows of a result are bit for bit those of the smaller one, in the same layout."""
        where, expected = self._small.rows[buffer], self._small.tape.roots[buffer]
        if where is None:
            return torch.equal(words(after[buffer]), words(roots[buffer]))
        if buffer in after and tuple(roots[buffer].stride()) != expected.stride and roots[buffer].numel() > 1:
            return False
        return torch.equal(words(self._pick(buffer, where, after[buffer])), words(expected.on(roots[buffer])))


def _nothing(view: View) -> Tensor:
    """Fail: all memory of the smaller operation was given."""
    raise KeyError(view.buffer)
