"""The same pass at another batch size: where each image lies, and which operations give the same bits."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from resilient_heads.rerun.execute import as_list, run_step
from resilient_heads.rerun.recorder import Run, copy_memory, record
from resilient_heads.rerun.rows import Rows, changed, rows_from_shapes, settle_order, words
from resilient_heads.rerun.tape import Step, Tape, View, flat_tensors

# fmt: off
EXACT = frozenset({
    "relu", "relu_", "threshold", "clamp", "clamp_", "clamp_min", "clamp_max", "hardtanh", "hardtanh_",
    "hardswish", "hardswish_", "hardsigmoid", "hardsigmoid_", "leaky_relu", "leaky_relu_", "add", "add_",
    "sub", "sub_", "mul", "mul_", "div", "div_", "neg", "abs", "max_pool2d_with_indices", "cat", "stack",
    "clone", "copy_", "_to_copy", "flip", "roll", "index", "index_select", "gather", "constant_pad_nd",
    "reflection_pad2d", "upsample_nearest2d", "masked_fill", "masked_fill_", "where", "fill_", "zero_",
})
"""ATen operators that round nothing, or every element alike, wherever it lies: they depend on the batch by their
arguments at most."""
_TRIED = frozenset({
    "convolution", "addmm", "mm", "bmm", "baddbmm", "linear", "sum", "mean", "amax", "amin",
    "linalg_vector_norm", "avg_pool2d", "_adaptive_avg_pool2d", "native_batch_norm",
    "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "native_layer_norm", "native_group_norm",
    "_softmax", "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
})
"""Those that add up in an order which may depend on the size of the batch, but not on the values: trying them on one
batch shows it for all."""
# fmt: on
# All others see the whole batch: some take one path for full vectors and another for what is left over, which differ in
# the last bit for some values only (sigmoid, GELU, exp).


_CHANGED = (0, 1)
"""Images of three that are changed, one after the other, to see where they lie."""


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
    """Find where the images of a batch lie, by running three of them, and again with one of them changed.

    Args:
        run: Runs the model.
        tape: The pass over all images.
        inputs: All images, at least four.
    """
    few = inputs[torch.tensor([0, 1, 2], device=inputs.device)]
    recorded, _ = record(run, few)
    small = recorded.tape
    if [step.func for step in small.steps] != [step.func for step in tape.steps]:
        return Batch(len(inputs), tape, {})
    contents = [_Contents(small) for _ in (None, *_CHANGED)]
    for content, images in zip(contents, (few, *(changed(few, image) for image in _CHANGED)), strict=True):
        content.made[small.images] = images
        with content:
            run(None, images)
    rows: dict[int, Rows | None] = {}
    for buffer, (many, own) in enumerate(zip(tape.roots, small.roots, strict=True)):
        try:
            found = rows_from_shapes(many.size, own.size, len(inputs), len(few))
        except ValueError:
            continue
        if found is None:
            rows[buffer] = None
        elif buffer in tape.whole & small.whole and all(buffer in content.made for content in contents):
            settled = settle_order(found, [content.made[buffer] for content in contents], _CHANGED)
            if settled is not None:
                rows[buffer] = settled
    return Batch(len(inputs), tape, rows)


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
        number = next(self._numbers, -1)
        if number < 0 or self._whole.tape.steps[number].func is not func:
            self.strayed = True
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
        tensors = flat_tensors((args, tuple(kwargs.values())))
        before = [self._before(step, tensors, *small) for small in self._smaller]
        result = func(*args, **kwargs)
        after = {view.buffer: tensor for view, tensor in zip(step.views, tensors, strict=True)}
        for view, value in zip(step.outputs, as_list(result), strict=True):
            if view is not None:
                after[view.buffer] = value
        for inexact, roots, small in zip(self.inexact, before, self._smaller, strict=True):
            if roots is None or not self._agree(number, roots, after, *small):
                inexact.add(number)
        return result

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

    def _pick(self, buffer: int, where: Rows, tensor: Tensor, small: Batch, images: Tensor) -> Tensor:
        """Return the rows of some images on memory of their own."""
        root = self._whole.tape.roots[buffer].on(tensor)
        return where.pick(root, images, small.shaped(buffer, tensor.device))


def trial_tells(kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether trying an operator on one batch shows for all whether it gives the same bits."""
    if kind in _TRIED:
        return True
    # With a factor, or rounded, these have one path for full vectors and another for what is left over.
    plain = kwargs.get("alpha", 1) == 1 and len(args) < 3 and kwargs.get("rounding_mode") is None
    return kind in EXACT and (plain or kind.rstrip("_") not in ("add", "sub", "div"))


def _nothing(view: View) -> Tensor:
    """Fail: all memory of the smaller operation was given."""
    raise KeyError(view.buffer)
