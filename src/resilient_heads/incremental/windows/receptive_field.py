"""Operations whose every output depends on a few neighbouring inputs, and how far a change spreads through them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from resilient_heads.incremental.recording.batch_layout import BatchLayout
from resilient_heads.incremental.recording.batches import Batch
from resilient_heads.incremental.recording.operators import trial_tells
from resilient_heads.incremental.recording.slices import Slice
from resilient_heads.incremental.recording.tape import Moment, Step, View, flat_views
from resilient_heads.incremental.windows.crops import Numbers, Size

_WORTH = 0.25
"""Share of a tensor's pixels up to which a window of it is cheaper than all of it."""
_IMAGES_FIRST = BatchLayout(0, 1)
# fmt: off
_POINTWISE = frozenset({
    "relu", "relu_", "clamp", "clamp_", "clamp_min", "clamp_max", "hardtanh", "hardtanh_", "hardswish", "hardswish_",
    "leaky_relu", "leaky_relu_", "add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "clone", "cat",
    "constant_pad_nd", "native_batch_norm", "_native_batch_norm_legit_no_training",
})
# fmt: on


@dataclass(frozen=True, slots=True)
class Reach:
    """How outputs of a convolution or a pooling lie over its inputs, along height and width.

    Attributes:
        kernel: With the gaps of its dilation.
        stride, padding: As usual.
        fill: Value of the padding.
    """

    kernel: Size
    stride: Size
    padding: Size
    fill: float

    def touched(self, size: Size) -> Size:
        """Return how many outputs a window of inputs touches at most."""
        return _pair((n + k - 2) // s + 1 for n, k, s in zip(size, self.kernel, self.stride, strict=True))

    def first(self, origin: Numbers) -> Numbers:
        """Return the first outputs that inputs from ``origin`` on touch, ``(n, 2)``."""
        back = _pair(p - k + s for k, s, p in zip(self.kernel, self.stride, self.padding, strict=True))
        return (origin + back) // self.stride

    def inputs(self, origin: Numbers) -> Numbers:
        """Return the first inputs that outputs from ``origin`` on read, ``(n, 2)``; negative within the padding."""
        inputs: Numbers = origin * self.stride - self.padding
        return inputs

    def read(self, size: Size) -> Size:
        """Return how many inputs a window of outputs reads."""
        return _pair((n - 1) * s + k for n, k, s in zip(size, self.kernel, self.stride, strict=True))


@dataclass(frozen=True, slots=True)
class Local:
    """An operation on windows.

    Attributes:
        number: Of the step.
        size: Of the window of its result.
        limit: Height and width of the whole result.
        reach: How far it reaches; None where every output depends on the inputs of its own pixel.
        result: The buffer that it makes or writes to.
    """

    number: int
    size: Size
    limit: Size
    reach: Reach | None
    result: int


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """The first operations of a slice, as far as they are run on windows.

    Attributes:
        locals: The operations.
        live: What depends on the struck tensor and is needed, before each of them and after the last one.
        looks: Positions in ``live`` at which windows are compared with golden content.
        needs: Golden content that is read beyond what the slice needs.
    """

    locals: tuple[Local, ...]
    live: tuple[tuple[Moment, ...], ...]
    looks: frozenset[int]
    needs: frozenset[Moment]


def plan_windows(piece: Slice, batch: Batch, able: Collection[Local] | None = None) -> WindowPlan | None:
    """Return how far a fault in one pixel of each image can be followed on windows around it; None if not at all.

    Args:
        piece: What comes after the struck tensor.
        batch: The pass.
        able: Which operations are known to give the same bits on windows; by default all are hoped to.
    """
    source = piece.source.view
    if not _is_map(source, batch) or stride_of(source, batch) != (1, 1):
        return None
    sizes: dict[int, Size] = {source.buffer: (1, 1)}
    versions = {source.buffer: source.version}
    needs: set[Moment] = set()
    found: list[Local] = []
    live: list[tuple[Moment, ...]] = [((source.buffer, source.version),)]
    heavy = {cut.step for cut in piece.cuts}
    for number, frees in zip(piece.steps, piece.frees, strict=True):
        step = batch.tape.steps[number]
        local = _local(number, step, piece, batch, sizes)
        if local is None or (able is not None and local not in able):
            break
        found.append(local)
        own = [view for view in step.views if view.buffer in sizes]
        if local.reach is not None or len(own) > 1 or stride_of(own[0], batch) != (1, 1):
            needs.update(live[-1], (view.moment for view in own))
        sizes[local.result] = local.size
        versions[local.result] = 0
        for view in step.views:
            if view.buffer in step.writes:
                versions[view.buffer] = view.version + 1
        for buffer in frees:
            sizes.pop(buffer, None)
        live.append(tuple((buffer, versions[buffer]) for buffer in sorted(sizes)))
    if not found:
        return None
    looks = frozenset({at for at, local in enumerate(found) if local.number in heavy} | {len(found)})
    return WindowPlan(tuple(found), tuple(live), looks, frozenset(needs | set(live[-1])))


def _local(number: int, step: Step, piece: Slice, batch: Batch, sizes: dict[int, Size]) -> Local | None:
    """Return the operation on windows, or None where there is none or it would not pay."""
    kind = step.func._schema.name.removeprefix("aten::")
    result = next((view for view in step.outputs if view is not None), None)
    if result is None or not _is_map(result, batch) or stride_of(result, batch) != (1, 1):
        return None
    read = set().union(*(batch.tape.steps[later].reads for later in piece.steps if later > number))
    if (step.creates - {result.buffer}) & read or step.writes - {result.buffer}:
        return None
    own = [view for view in step.views if view.buffer in sizes]
    if not all(_is_map(view, batch) for view in own):
        return None
    height, width = result.size[2:]
    if kind in _POINTWISE:
        if not _by_pixel(kind, step, result, batch, sizes):
            return None
        reach = None
        all_sizes = [
            _pair(-(-n // s) for n, s in zip(sizes[view.buffer], stride_of(view, batch) or (1, 1), strict=True))
            for view in own
        ]
        size = (max(size[0] for size in all_sizes), max(size[1] for size in all_sizes))
    else:
        reach = _reach(kind, step)
        if reach is None or own != flat_views(step.args)[:1] or stride_of(own[0], batch) != (1, 1):
            return None
        if any(batch.rows.get(view.buffer, _IMAGES_FIRST) is not None for view in step.views[1:]):
            return None
        size = reach.touched(sizes[own[0].buffer])
    size = (min(size[0], height), min(size[1], width))
    if size[0] * size[1] > _WORTH * height * width:
        return None
    return Local(number, size, (height, width), reach, result.buffer)


def _by_pixel(kind: str, step: Step, result: View, batch: Batch, sizes: Mapping[int, Size]) -> bool:
    """Whether each pixel of the result depends on its own pixel of the arguments alone."""
    if not trial_tells(kind, step.args, dict(step.kwargs)):
        return False
    if kind == "native_batch_norm" and step.args[5]:
        return False
    if kind == "cat" and step.args[1:] not in ((1,), (-3,)):
        return False
    if kind == "constant_pad_nd" and any(step.args[1][:4]):
        return False
    for view in step.views:
        if view.buffer in sizes:
            if view.size[2:] != result.size[2:] or stride_of(view, batch) is None:
                return False
        elif batch.rows.get(view.buffer, _IMAGES_FIRST) is None:
            channels = 0 if "batch_norm" in kind else len(view.size) - 3
            if any(size > 1 for dim, size in enumerate(view.size) if dim != channels):
                return False
        elif not _is_map(view, batch) or view.size[0] != batch.size or view.size[2:] not in (result.size[2:], (1, 1)):
            return False
    return True


def _reach(kind: str, step: Step) -> Reach | None:
    """Return how a convolution or a pooling reaches over its inputs; None for anything else."""
    args = step.args
    if kind == "convolution":
        if args[6] or len(args[1].size) != 4:
            return None
        kernel, stride, padding, dilation = (_both(value) for value in (args[1].size[2:], *args[3:6]))
        fill = 0.0
    elif kind == "max_pool2d_with_indices":
        kernel, stride, padding, dilation = (_both(args[at]) if len(args) > at else None for at in (1, 2, 3, 4))
        stride, padding, dilation = stride or kernel, padding or (0, 0), dilation or (1, 1)
        fill = -torch.inf
    else:
        return None
    if kernel is None or stride is None or padding is None or dilation is None:
        return None
    spread = _pair((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    return Reach(spread, _pair(stride), _pair(padding), fill)


def unpadded(step: Step) -> tuple[Any, ...]:
    """Return the arguments of a convolution or a pooling, without padding."""
    args = list(step.args)
    at = 4 if step.func._schema.name == "aten::convolution" else 3
    if len(args) > at:
        args[at] = [0, 0]
    if step.func._schema.name == "aten::max_pool2d_with_indices" and len(args) > 5:
        args[5] = False
    return tuple(args)


def _is_map(view: View, batch: Batch) -> bool:
    """Whether a view shows images, channels, height and width."""
    return len(view.size) == 4 and batch.rows.get(view.buffer) == _IMAGES_FIRST


def stride_of(view: View, batch: Batch) -> Size | None:
    """Return of how many pixels of its buffer a view shows one, along height and width; None if it shows others."""
    root = batch.tape.roots[view.buffer]
    if len(root.size) != 4 or view.dtype != root.dtype or view.offset != root.offset or view.size[:2] != root.size[:2]:
        return None
    if view.stride[:2] != root.stride[:2] or not all(root.stride[2:]):
        return None
    steps = _pair(own // whole for own, whole in zip(view.stride[2:], root.stride[2:], strict=True))
    shown = all(
        step > 0 and own == step * whole and size == -(-of // step)
        for step, own, whole, size, of in zip(
            steps, view.stride[2:], root.stride[2:], view.size[2:], root.size[2:], strict=True
        )
    )
    return steps if shown else None


def _both(value: Any) -> Size | None:
    """Return height and width of an argument that may be one number for both."""
    values: Sequence[int] = [value] if isinstance(value, int) else value
    return (values[0], values[-1]) if values else None


def _pair(values: Any) -> Size:
    """Return two numbers."""
    first, second = values
    return int(first), int(second)
