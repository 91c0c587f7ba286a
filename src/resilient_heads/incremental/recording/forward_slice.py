"""The operations of a pass that depend on one tensor and lead to the logits: its forward slice."""

from dataclasses import dataclass

import torch

from resilient_heads.incremental.recording.tape import BufferVersion, ControlFlowError, MarkedTensor, Step, Tape, View

# fmt: off
_EXPENSIVE = frozenset({
    "convolution", "addmm", "mm", "bmm", "baddbmm", "linear", "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_attention_math",
})
"""ATen operators that take much longer than a comparison of their inputs."""
# fmt: on


@dataclass(frozen=True, slots=True)
class ComparisonPoint:
    """An expensive operation, before which a rerun may compare rows with golden ones.

    Attributes:
        step: The operation.
        live: What depends on the source and is still needed; the slice's other inputs are golden.
    """

    step: int
    live: tuple[BufferVersion, ...]


@dataclass(frozen=True, slots=True)
class ForwardSlice:
    """What to run again after a change of one tensor.

    Attributes:
        source: The tensor.
        steps: Numbers of the operations to run, in order; empty if the logits do not depend on the source.
        dead_after: For each of ``steps``, the buffers that no later operation needs.
        golden_inputs: Golden content that the operations read or write to.
        comparison_points: The expensive operations, in order.
        reaches_logits: Whether the logits depend on the source.
    """

    source: MarkedTensor
    steps: tuple[int, ...]
    dead_after: tuple[tuple[int, ...], ...]
    golden_inputs: frozenset[BufferVersion]
    comparison_points: tuple[ComparisonPoint, ...]
    reaches_logits: bool


def slice_after(tape: Tape, source: MarkedTensor) -> ForwardSlice:
    """Return what to run again after a change of a tensor.

    Raises:
        ControlFlowError: A rerun from there could differ from a full pass; the message says why.
    """
    if tape.obstacle is not None:
        raise ControlFlowError(tape.obstacle)
    if len(source.view.stride) != len(source.view.size):
        raise ControlFlowError("its tensor is not plain strided memory")
    if _elements_overlap(source.view):
        raise ControlFlowError("several of its elements share their memory")
    if source.view.buffer in tape.external:
        raise ControlFlowError("its memory outlives the pass")
    assert tape.logits is not None
    dependent_steps, dependent = _dependent(tape, source)
    steps, last_use = _needed(tape, dependent_steps, dependent)
    for number in set(dependent_steps).difference(steps):
        _require_no_error(tape.steps[number], dependent)
    if tape.logits.buffer not in dependent:
        return ForwardSlice(source, (), (), frozenset(), (), reaches_logits=False)
    written_external = tape.external & {buffer for step in tape.steps for buffer in step.writes}
    if any(tape.steps[number].reads & written_external for number in steps):
        raise ControlFlowError("it writes into memory that outlives the pass")
    golden_inputs: set[BufferVersion] = set()
    versions = {source.view.buffer: source.view.version}
    points = []
    dead_after = []
    for number in steps:
        step = tape.steps[number]
        if step.operator in _EXPENSIVE:
            live = sorted(BufferVersion(b, v) for b, v in versions.items() if last_use.get(b, -1) >= number)
            points.append(ComparisonPoint(number, tuple(live)))
        for view in step.views:
            if view.buffer in versions:
                versions[view.buffer] = view.version
            else:
                golden_inputs.add(view.content)
        versions |= dict.fromkeys(step.creates, 0)
        versions |= {view.buffer: view.version + 1 for view in step.views if view.buffer in step.writes}
        dead_after.append(tuple(b for b in sorted(versions) if last_use.get(b, -1) == number))
    return ForwardSlice(source, steps, tuple(dead_after), frozenset(golden_inputs), tuple(points), reaches_logits=True)


def _dependent(tape: Tape, source: MarkedTensor) -> tuple[list[int], set[int]]:
    """Return the operations that read what depends on a tensor, and all buffers that depend on it."""
    dependent = {source.view.buffer}
    steps = []
    for number in range(source.steps_before, len(tape.steps)):
        step = tape.steps[number]
        if not step.is_view and step.reads & dependent:
            _require_fixed_control_flow(step, dependent)
            steps.append(number)
            dependent |= step.creates | step.writes
    return steps, dependent


def _needed(tape: Tape, steps: list[int], dependent: set[int]) -> tuple[tuple[int, ...], dict[int, int]]:
    """Return those operations that lead to the logits, and the last use of each buffer that depends on the source."""
    assert tape.logits is not None
    last_use = {tape.logits.buffer: len(tape.steps)}
    needed = []
    for number in reversed(steps):
        step = tape.steps[number]
        if (step.creates | step.writes) & last_use.keys():
            needed.append(number)
            for buffer in (step.reads | step.creates | step.writes) & dependent:
                last_use.setdefault(buffer, number)
    return tuple(reversed(needed)), last_use


def _require_fixed_control_flow(step: Step, dependent: set[int]) -> None:
    """Raise ControlFlowError if a fault could make the model run other operations after this one."""
    if step.opaque:
        raise ControlFlowError(f"the model uses an object that is no tensor ({step.func})")
    tags = step.func.tags
    if torch.Tag.nondeterministic_seeded in tags and "attention" not in step.operator:
        raise ControlFlowError(f"the model draws random numbers ({step.func})")
    leaves_tape = all(view is None for view in step.outputs) and not step.writes
    if leaves_tape or torch.Tag.data_dependent_output in tags:
        raise ControlFlowError(f"the model looks at values in Python ({step.func})")
    if torch.Tag.dynamic_output_shape in tags and not _indexes_by_constants(step, dependent):
        raise ControlFlowError(f"the shape of a result depends on values ({step.func})")


def _elements_overlap(view: View) -> bool:
    """Return whether several elements of a view may lie at one place in memory."""
    reach = 0
    for stride, size in sorted(zip(view.stride, view.size, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += stride * (size - 1)
    return False


def _require_no_error(step: Step, dependent: set[int]) -> None:
    """Raise ControlFlowError if an operation that a rerun leaves out could raise an error for faulty values."""
    index = any(not view.dtype.is_floating_point and view.buffer in dependent for view in step.views)
    if index or "linalg" in step.operator or "cholesky" in step.operator:
        raise ControlFlowError(f"the model may raise an error for faulty values ({step.func})")


def _indexes_by_constants(step: Step, dependent: set[int]) -> bool:
    """Return whether an operation picks elements by integers that no fault changes."""
    if not step.operator.startswith("index"):
        return False
    indices = [view for view in step.argument("indices") if view is not None]
    return all(view.dtype not in (torch.bool, torch.uint8) and view.buffer not in dependent for view in indices)
