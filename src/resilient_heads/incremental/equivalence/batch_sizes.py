"""Check which operations give the same bits for fewer images."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from resilient_heads.incremental.equivalence.random_values import rounds_needed, run_on_random_values
from resilient_heads.incremental.recording.execute import run_step
from resilient_heads.incremental.recording.observer import observe_pass
from resilient_heads.incremental.recording.operators import can_be_checked
from resilient_heads.incremental.recording.recorded_pass import RecordedPass
from resilient_heads.incremental.recording.recorder import RunModel, record
from resilient_heads.incremental.recording.tape import Step, View, as_list, copy_memory
from resilient_heads.incremental.recording.words import words
from resilient_heads.phases import phase


def record_smaller_batches(
    run: RunModel, full: RecordedPass, images: Tensor, batch_sizes: Sequence[int]
) -> dict[int, RecordedPass]:
    """Record passes over fewer images, and compare each of their operations with the one on the full batch.

    Returns:
        Batch size to pass; without the sizes at which the model runs other operations.
    """
    smaller = {size: _record(run, full, images[:size]) for size in batch_sizes}
    passes = [recorded for recorded in smaller.values() if recorded is not None]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).to(images.device)
    check = _BatchSizeCheck(full, passes, order)
    operations = len(full.tape.steps)
    with phase("checking that smaller batches give the same bits", total=operations, unit="operation") as advance:

        def observe(*operation: Any) -> Any:
            result = check.observe(*operation)
            advance(1)
            return result

        if not observe_pass(run, full.tape, images, observe):
            return {}
    return {
        recorded.batch_size: dataclasses.replace(recorded, inexact=frozenset(inexact))
        for recorded, inexact in zip(passes, check.inexact, strict=True)
    }


def _record(run: RunModel, full: RecordedPass, images: Tensor) -> RecordedPass | None:
    """Return a smaller pass; None if it runs other operations or has unexpected shapes."""
    recorder, _ = record(run, images.clone(memory_format=torch.preserve_format))
    small = recorder.tape
    if not small.same_operators(full.tape):
        return None
    layouts = {b: layout for b, layout in full.layouts.items() if b in small.dense or layout is None}
    for buffer, layout in layouts.items():
        expected = list(full.tape.bases[buffer].size)
        if layout is not None:
            expected[layout.dim] = layout.fold * len(images)
        if tuple(expected) != small.bases[buffer].size:
            return None
    return RecordedPass(len(images), small, layouts)


class _BatchSizeCheck:
    """Repeats each operation of a pass for fewer images.

    Attributes:
        inexact: For each smaller pass, the operations of which a bit differs, or that cannot be checked.
    """

    def __init__(self, full: RecordedPass, smaller: Sequence[RecordedPass], order: Tensor) -> None:
        self.inexact: list[set[int]] = [set() for _ in smaller]
        self._full = full
        self._smaller = smaller
        self._order = order

    def observe(self, number: int, step: Step, tensors: dict[View, Tensor], run: Callable[[], Any]) -> Any:
        """Run an operation on the full batch and on parts of it."""
        involved = step.reads | step.creates
        if step.is_view or all(self._full.layouts.get(buffer, 0) is None for buffer in involved):
            return run()
        if not can_be_checked(step):
            self._mark_inexact(number)
            return run()
        # The inputs for fewer images are copied first, as the operation may write to its own.
        inputs = [self._inputs(step, tensors, small, self._order[: small.batch_size]) for small in self._smaller]
        result = run()
        outputs = {view.buffer: tensor for view, tensor in tensors.items()}
        outputs |= {v.buffer: t for v, t in zip(step.outputs, as_list(result), strict=True) if v is not None}
        for at, small in enumerate(self._smaller):
            self._compare(at, number, inputs[at], outputs, self._order[: small.batch_size])
        first = as_list(result)[0]
        smallest = min((small.batch_size for small in self._smaller), default=0)
        rounds = rounds_needed(step.operator, first.numel() // self._full.batch_size * smallest, first.dtype)
        if rounds is None:
            self._mark_inexact(number)
        for seed in range(rounds or 0):
            self._check_random_values(number, tensors, torch.Generator().manual_seed(seed))
        return result

    def _mark_inexact(self, number: int) -> None:
        """Run an operation on the full batch at every batch size."""
        for inexact in self.inexact:
            inexact.add(number)

    def _check_random_values(self, number: int, tensors: dict[View, Tensor], generator: torch.Generator) -> None:
        """Check an operation on random values, with images in random order."""
        step = self._full.tape.steps[number]
        arguments, outputs = run_on_random_values(step, tensors, self._full, generator)
        for at, small in enumerate(self._smaller):
            order = torch.randperm(self._full.batch_size, generator=generator)[: small.batch_size]
            if number not in self.inexact[at]:
                images = order.to(self._order.device)
                self._compare(at, number, self._inputs(step, arguments, small, images), outputs, images)

    def _inputs(
        self, step: Step, tensors: dict[View, Tensor], small: RecordedPass, images: Tensor
    ) -> dict[int, Tensor] | None:
        """Return the buffers that an operation reads, for fewer images; None if their layout is unknown."""
        buffers: dict[int, Tensor] = {}
        try:
            for view, tensor in tensors.items():
                if view.buffer in buffers:
                    continue
                if small.layouts[view.buffer] is None:
                    buffers[view.buffer] = copy_memory(tensor) if view.buffer in step.writes else tensor
                else:
                    buffers[view.buffer] = self._select(view.buffer, tensor, small, images)
        except (KeyError, RuntimeError):
            return None
        return buffers

    def _compare(
        self, at: int, number: int, buffers: dict[int, Tensor] | None, outputs: dict[int, Tensor], images: Tensor
    ) -> None:
        """Run an operation for fewer images, and mark it inexact unless it gives the bits of the full batch."""
        small = self._smaller[at]
        try:
            agrees = buffers is not None and self._agrees(small, number, buffers, outputs, images)
        except (KeyError, RuntimeError):
            agrees = False
        if not agrees:
            self.inexact[at].add(number)

    def _agrees(
        self, small: RecordedPass, number: int, buffers: dict[int, Tensor], outputs: dict[int, Tensor], images: Tensor
    ) -> bool:
        """Return whether a smaller operation gives the bits of the full one, in the recorded memory layout."""
        step = self._full.tape.steps[number]
        run_step(small.tape.steps[number], buffers, _no_golden_content)
        for buffer in step.creates | step.writes:
            result, base = buffers[buffer], small.tape.bases[buffer]
            if small.layouts[buffer] is None:
                expected = outputs[buffer]
            elif buffer in step.creates and result.stride() != base.stride and result.numel() > 1:
                return False
            else:
                expected, result = self._select(buffer, outputs[buffer], small, images), base.on(result)
            if not torch.equal(words(expected), words(result)):
                return False
        return True

    def _select(self, buffer: int, tensor: Tensor, small: RecordedPass, images: Tensor) -> Tensor:
        """Return the parts of some images on new memory."""
        return small.select_images(buffer, self._full.tape.bases[buffer].on(tensor), images)


def _no_golden_content(view: View) -> Tensor:
    """Fail: the smaller operation has all of its inputs."""
    raise KeyError(view.buffer)
