"""Try which operations give the same bits for fewer images."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from resilient_heads.incremental.recording.batch_layout import BatchLayout
from resilient_heads.incremental.recording.batches import Batch
from resilient_heads.incremental.recording.execute import as_list, run_step
from resilient_heads.incremental.recording.operators import fits, noise_like, rounds, trial_tells
from resilient_heads.incremental.recording.recorder import Run, copy_memory, record
from resilient_heads.incremental.recording.tape import Step, View, flat_tensors
from resilient_heads.incremental.recording.words import words


def smaller_batches(run: Run, whole: Batch, inputs: Tensor, sizes: Sequence[int]) -> dict[int, Batch]:
    """Record passes over fewer images, and try each operation on the whole batch and on all the smaller ones.

    Returns:
        Size to pass; without those sizes at which the model does other operations.
    """
    found = {}
    for size in sizes:
        batch = _recorded(run, whole, inputs[:size].clone(memory_format=torch.preserve_format))
        if batch is not None:
            found[size] = batch
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0)).to(inputs.device)
    trial = _Sizes(whole, [(batch, order[:size]) for size, batch in found.items()])
    with trial:
        run(None, inputs)
    if trial.strayed:
        return {}
    return {
        size: dataclasses.replace(batch, inexact=frozenset(inexact))
        for (size, batch), inexact in zip(found.items(), trial.inexact, strict=True)
    }


def _recorded(run: Run, whole: Batch, fewer: Tensor) -> Batch | None:
    """Return a smaller pass, or None if it does other operations or has other shapes."""
    recorded, _ = record(run, fewer)
    small, tape = recorded.tape, whole.tape
    if [step.func for step in small.steps] != [step.func for step in tape.steps]:
        return None
    rows = {buffer: where for buffer, where in whole.rows.items() if buffer in small.whole or where is None}
    for buffer, where in rows.items():
        expected = list(tape.roots[buffer].size)
        if where is not None:
            expected[where.dim] = where.fold * len(fewer)
        if tuple(expected) != small.roots[buffer].size:
            return None
    return Batch(len(fewer), small, rows)


class _Sizes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Repeats each operation of a pass on the rows of some images, and notes where a bit differs."""

    def __init__(self, whole: Batch, smaller: Sequence[tuple[Batch, Tensor]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inexact: list[set[int]] = [set() for _ in smaller]
        self.strayed = False  # the pass took another way than the recorded one, so nothing is known
        self._whole, self._smaller = whole, smaller
        self._numbers: Iterator[int] = iter(range(len(whole.tape.steps)))

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation on the whole batch and on parts of it."""
        kwargs = kwargs or {}
        number, tensors = next(self._numbers, -1), flat_tensors((args, tuple(kwargs.values())))
        self.strayed |= number < 0 or not fits(self._whole.tape.steps[number], func, tensors)
        if self.strayed:
            return func(*args, **kwargs)
        step = self._whole.tape.steps[number]
        kind = func._schema.name.removeprefix("aten::")
        involved = step.reads | step.creates
        if step.is_view or all(self._whole.rows.get(buffer, 0) is None for buffer in involved):
            return func(*args, **kwargs)
        if not trial_tells(kind, args, kwargs):
            for inexact in self.inexact:
                inexact.add(number)
            return func(*args, **kwargs)
        before = [self._before(step, tensors, *small) for small in self._smaller]
        result = func(*args, **kwargs)
        after = {view.buffer: tensor for view, tensor in zip(step.views, tensors, strict=True)}
        for view, value in zip(step.outputs, as_list(result), strict=True):
            if view is not None:
                after[view.buffer] = value
        for inexact, roots, small in zip(self.inexact, before, self._smaller, strict=True):
            if roots is None or not self._agree(number, roots, after, *small):
                inexact.add(number)
        first = as_list(result)[0]
        least = min((small.size for small, _ in self._smaller), default=0)
        needed = rounds(kind, first.numel() // self._whole.size * least, first.dtype)
        for inexact in self.inexact if needed is None else ():
            inexact.add(number)
        for seed in range(needed or 0):
            self._try_noise(number, dict(zip(step.views, tensors, strict=True)), torch.Generator().manual_seed(seed))
        return result

    def _try_noise(self, number: int, given: dict[View, Tensor], generator: torch.Generator) -> None:
        """Repeat an operation, which writes over nothing, on random values, with images at other places."""
        step = self._whole.tape.steps[number]
        noise = {
            view.buffer: noise_like(self._whole.tape.roots[view.buffer].on(tensor), generator)
            for view, tensor in given.items()
            if self._whole.rows.get(view.buffer) is not None
        }
        after = dict(noise)
        run_step(step, after, given.__getitem__)
        tensors = [noise.get(view.buffer, given[view]) for view in step.views]
        for inexact, (small, images) in zip(self.inexact, self._smaller, strict=True):
            order = torch.randperm(self._whole.size, generator=generator)[: len(images)].to(images.device)
            if number in inexact:
                continue
            roots = self._before(step, tensors, small, order)
            if roots is None or not self._agree(number, roots, after, small, order):
                inexact.add(number)

    def _before(self, step: Step, tensors: list[Tensor], small: Batch, images: Tensor) -> dict[int, Tensor] | None:
        """Return the memory of a smaller operation; None where it cannot be had."""
        roots: dict[int, Tensor] = {}
        try:
            for view, tensor in zip(step.views, tensors, strict=True):
                where = small.rows[view.buffer]
                if where is None and view.buffer not in roots:
                    roots[view.buffer] = copy_memory(tensor) if view.buffer in step.writes else tensor
                elif where is not None and view.buffer not in roots:
                    roots[view.buffer] = self._pick(view.buffer, where, tensor, small, images)
        except (KeyError, RuntimeError):
            return None
        return roots

    def _agree(
        self, number: int, roots: dict[int, Tensor], after: dict[int, Tensor], small: Batch, images: Tensor
    ) -> bool:
        """Whether a smaller operation gives the bits of the whole one, in the expected layout."""
        step = self._whole.tape.steps[number]
        try:
            run_step(small.tape.steps[number], roots, _nothing)
            for buffer in step.creates | step.writes:
                where, expected = small.rows[buffer], small.tape.roots[buffer]
                if where is None:
                    same = torch.equal(words(after[buffer]), words(roots[buffer]))
                elif buffer in step.creates and roots[buffer].stride() != expected.stride and roots[buffer].numel() > 1:
                    same = False
                else:
                    picked = self._pick(buffer, where, after[buffer], small, images)
                    same = torch.equal(words(picked), words(expected.on(roots[buffer])))
                if not same:
                    return False
        except (KeyError, RuntimeError):
            return False
        return True

    def _pick(self, buffer: int, where: BatchLayout, tensor: Tensor, small: Batch, images: Tensor) -> Tensor:
        """Return the rows of some images on memory of their own."""
        root = self._whole.tape.roots[buffer].on(tensor)
        return where.pick(root, images, small.shaped(buffer, tensor.device))


def _nothing(view: View) -> Tensor:
    """Fail: all memory of the smaller operation was given."""
    raise KeyError(view.buffer)
