"""Which operations depend on one tensor of a pass, and what else they read."""

from dataclasses import dataclass

import torch

from resilient_heads.incremental.recording.tape import ControlFlowError, Mark, Moment, Step, Tape

_HEAVY = frozenset(
    {
        "aten::convolution",
        "aten::addmm",
        "aten::mm",
        "aten::bmm",
        "aten::baddbmm",
        "aten::linear",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "aten::_scaled_dot_product_attention_math",
    }
)


@dataclass(frozen=True, slots=True)
class Cut:
    """A place where one may look which rows have become golden.

    Attributes:
        step: The operation before which it lies.
        live: Buffers that depend on the struck tensor and are still needed, at the versions they have there.
    """

    step: int
    live: tuple[Moment, ...]


@dataclass(frozen=True, slots=True)
class Slice:
    """What comes after a tensor.

    Attributes:
        source: The tensor.
        steps: The operations to run again, in order.
        frees: For each of ``steps``, the buffers that nothing needs afterwards.
        needs: Golden content that they read, or write over.
        cuts: Places to look at, in order.
        reaches_logits: Whether the logits depend on the tensor at all.
    """

    source: Mark
    steps: tuple[int, ...]
    frees: tuple[tuple[int, ...], ...]
    needs: frozenset[Moment]
    cuts: tuple[Cut, ...]
    reaches_logits: bool


def slice_after(tape: Tape, source: Mark) -> Slice:
    """Return what depends on a tensor.

    Raises:
        ControlFlowError: The pass cannot be run again from there; the message says why.
    """
    if tape.obstacle is not None:
        raise ControlFlowError(tape.obstacle[1])
    if any(stride == 0 and size > 1 for size, stride in zip(source.view.size, source.view.stride, strict=True)):
        raise ControlFlowError("several of its elements share their memory")
    if source.view.buffer in tape.external:
        raise ControlFlowError("it is memory that outlives the pass")
    assert tape.logits is not None
    forward = _dependent(tape, source)
    tainted = {source.view.buffer}
    for number in forward:
        tainted |= tape.steps[number].creates | tape.steps[number].writes
    if tape.logits.buffer not in tainted:
        return Slice(source, (), (), frozenset(), (), reaches_logits=False)
    steps, last_use = _needed(tape, forward, tainted)
    lasting = tape.external & {buffer for step in tape.steps for buffer in step.writes}
    if any(tape.steps[number].reads & lasting for number in steps):
        raise ControlFlowError("it writes into memory that outlives the pass")
    needs: set[Moment] = set()
    dependent = {source.view.buffer}
    versions = {source.view.buffer: source.view.version}
    cuts = []
    frees = []
    for number in steps:
        step = tape.steps[number]
        if step.func._schema.name in _HEAVY:
            live = tuple(sorted((b, versions[b]) for b in dependent if last_use.get(b, -1) >= number))
            cuts.append(Cut(number, live))
        for buffer, version in _moments(step):
            if buffer not in dependent:
                needs.add((buffer, version))
            else:
                versions[buffer] = version
        for buffer in step.creates:
            versions[buffer] = 0
        for buffer in step.writes:
            versions[buffer] = dict(_moments(step))[buffer] + 1
        dependent |= step.creates | step.writes
        frees.append(tuple(b for b in sorted(dependent) if last_use.get(b, -1) == number))
    return Slice(source, steps, tuple(frees), frozenset(needs), tuple(cuts), reaches_logits=True)


def _dependent(tape: Tape, source: Mark) -> list[int]:
    """Return the operations after a tensor whose arguments depend on it."""
    tainted = {source.view.buffer}
    steps = []
    for number in range(source.position, len(tape.steps)):
        step = tape.steps[number]
        if step.is_view or not step.reads & tainted:
            continue
        _refuse_decisions(step, tainted)
        steps.append(number)
        tainted |= step.creates | step.writes
    return steps


def _needed(tape: Tape, forward: list[int], tainted: set[int]) -> tuple[tuple[int, ...], dict[int, int]]:
    """Drop what does not lead to the logits; return the rest, and each buffer's last use."""
    assert tape.logits is not None
    end = len(tape.steps)
    last_use = {tape.logits.buffer: end}
    steps = []
    for number in reversed(forward):
        step = tape.steps[number]
        if not (step.creates | step.writes) & last_use.keys():
            continue
        steps.append(number)
        for buffer in (step.reads | step.creates | step.writes) & tainted:
            last_use.setdefault(buffer, number)
    return tuple(reversed(steps)), last_use


def _moments(step: Step) -> list[Moment]:
    """Return what an operation reads, or writes over."""
    return [view.moment for view in step.views]


def _refuse_decisions(step: Step, tainted: set[int]) -> None:
    """Raise ControlFlowError for an operation whose result leaves the tape or has a shape that depends on values."""
    name = str(step.func)
    if torch.Tag.nondeterministic_seeded in step.func.tags and "attention" not in name:
        raise ControlFlowError(f"it draws random numbers ({name})")
    if all(view is None for view in step.outputs) and not step.writes:
        raise ControlFlowError(f"the model looks at values in Python ({name})")
    if torch.Tag.data_dependent_output in step.func.tags:
        raise ControlFlowError(f"the model looks at values in Python ({name})")
    if torch.Tag.dynamic_output_shape in step.func.tags and not _static_index(step, tainted):
        raise ControlFlowError(f"the shape of a result depends on values ({name})")


def _static_index(step: Step, tainted: set[int]) -> bool:
    """Whether an indexing operation picks by fixed integers."""
    if not step.func._schema.name.startswith("aten::index"):
        return False
    indices = [view for view in step.args[1] if view is not None]
    return all(view.dtype not in (torch.bool, torch.uint8) and view.buffer not in tainted for view in indices)
