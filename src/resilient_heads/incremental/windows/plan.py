"""Plan which operations of a forward slice run on windows of feature maps."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from resilient_heads.incremental.recording.batch_layout import BatchLayout
from resilient_heads.incremental.recording.forward_slice import ForwardSlice
from resilient_heads.incremental.recording.operators import can_be_checked
from resilient_heads.incremental.recording.recorded_pass import RecordedPass
from resilient_heads.incremental.recording.tape import BufferVersion, Step, View, flat_views
from resilient_heads.incremental.windows.crops import IntArray, Size
from resilient_heads.incremental.windows.receptive_field import ReceptiveField, as_size, receptive_field_of

_LARGEST_PART = 0.25
"""Largest part of a map that a window may take. Cropping takes time too, so a larger window saves little or nothing."""
_IMAGES_FIRST = BatchLayout(0, 1)
# fmt: off
_PIXELWISE = frozenset({
    "relu", "relu_", "clamp", "clamp_", "clamp_min", "clamp_max", "hardtanh", "hardtanh_", "hardswish", "hardswish_",
    "leaky_relu", "leaky_relu_", "add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "clone", "cat",
    "constant_pad_nd", "native_batch_norm", "_native_batch_norm_legit_no_training",
})
"""ATen operators of which an output pixel can depend on the same pixel of the inputs alone."""
# fmt: on


@dataclass(frozen=True, slots=True)
class WindowStep:
    """An operation that runs on windows.

    Attributes:
        number: Of the step on the tape.
        size: Height and width of the windows of its result.
        map_size: Height and width of the whole result.
        field: Its receptive field; None if each output pixel depends on the same pixel of the inputs.
        result: The buffer that it makes or writes to.
    """

    number: int
    size: Size
    map_size: Size
    field: ReceptiveField | None
    result: int

    def input_window(self, origin: IntArray) -> tuple[IntArray, Size]:
        """Return origin and size of the input windows that result windows at ``origin`` read."""
        if self.field is None:
            return origin, self.size
        return self.field.first_input(origin), self.field.inputs_read(self.size)


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """The first operations of a forward slice, as far as they run on windows.

    Attributes:
        steps: The operations.
        live: Before each of them, and after the last, what depends on the source and is still needed.
        comparison_points: Positions in ``live`` at which windows are compared with golden content.
        golden_inputs: Golden content that windows need and whole rows do not.
    """

    steps: tuple[WindowStep, ...]
    live: tuple[tuple[BufferVersion, ...], ...]
    comparison_points: frozenset[int]
    golden_inputs: frozenset[BufferVersion]


def plan_windows(
    forward_slice: ForwardSlice, full: RecordedPass, exact: Collection[WindowStep] | None = None
) -> WindowPlan | None:
    """Plan how far to follow a fault in one pixel of each image on windows; None if no operation runs on windows.

    ``exact`` holds the operations that give the same bits on windows; by default all are assumed to.
    """
    source = forward_slice.source.view
    if not _is_map(source, full) or pixel_stride(source, full) != (1, 1):
        return None
    sizes: dict[int, Size] = {source.buffer: (1, 1)}
    versions = {source.buffer: source.version}
    golden_inputs: set[BufferVersion] = set()
    steps: list[WindowStep] = []
    live: list[tuple[BufferVersion, ...]] = [(source.content,)]
    for number, dead in zip(forward_slice.steps, forward_slice.dead_after, strict=True):
        step = full.tape.steps[number]
        window_step = _window_step(number, forward_slice, full, sizes)
        if window_step is None or (exact is not None and window_step not in exact):
            break
        steps.append(window_step)
        followed = [view for view in step.views if view.buffer in sizes]
        if window_step.field is not None or len(followed) > 1 or pixel_stride(followed[0], full) != (1, 1):
            golden_inputs.update(live[-1], (view.content for view in followed))
        sizes[window_step.result] = window_step.size
        versions[window_step.result] = 0
        versions |= {view.buffer: view.version + 1 for view in step.views if view.buffer in step.writes}
        for buffer in dead:
            sizes.pop(buffer, None)
        live.append(tuple(BufferVersion(buffer, versions[buffer]) for buffer in sorted(sizes)))
    if not steps:
        return None
    expensive = {point.step for point in forward_slice.comparison_points}
    points = frozenset({at for at, step in enumerate(steps) if step.number in expensive} | {len(steps)})
    return WindowPlan(tuple(steps), tuple(live), points, frozenset(golden_inputs | set(live[-1])))


def _window_step(
    number: int, forward_slice: ForwardSlice, full: RecordedPass, sizes: Mapping[int, Size]
) -> WindowStep | None:
    """Return a step on windows, given the size of the windows of each buffer; None if it cannot run on windows."""
    step = full.tape.steps[number]
    result = next((view for view in step.outputs if view is not None), None)
    if result is None or not _is_map(result, full) or pixel_stride(result, full) != (1, 1):
        return None
    read_later = set().union(*(full.tape.steps[later].reads for later in forward_slice.steps if later > number))
    if (step.creates - {result.buffer}) & read_later or step.writes - {result.buffer}:
        return None
    followed = [view for view in step.views if view.buffer in sizes]
    if not all(_is_map(view, full) for view in followed):
        return None
    field = receptive_field_of(step)
    if field is None:
        if not _is_pixelwise(step, result, full, sizes):
            return None
        shown = [-(-np.array(sizes[view.buffer]) // (pixel_stride(view, full) or 1)) for view in followed]
        size = as_size(np.max(shown, axis=0))
    else:
        if not _slides_over_input_only(step, followed, full):
            return None
        size = field.outputs_reached(sizes[followed[0].buffer])
    map_size = as_size(result.size[2:])
    size = min(size[0], map_size[0]), min(size[1], map_size[1])
    if size[0] * size[1] > _LARGEST_PART * map_size[0] * map_size[1]:
        return None
    return WindowStep(number, size, map_size, field, result.buffer)


def _slides_over_input_only(step: Step, followed: list[View], full: RecordedPass) -> bool:
    """Return whether the fault reaches the first argument of a convolution or pooling, and no other depends on it."""
    if followed != flat_views(step.args)[:1] or pixel_stride(followed[0], full) != (1, 1):
        return False
    return all(full.layouts.get(view.buffer, _IMAGES_FIRST) is None for view in step.views[1:])


def _is_pixelwise(step: Step, result: View, full: RecordedPass, sizes: Mapping[int, Size]) -> bool:
    """Return whether each pixel of a result depends on the same pixel of the arguments alone."""
    kind = step.operator
    if kind not in _PIXELWISE or not can_be_checked(step):
        return False
    if kind == "native_batch_norm" and step.argument("training"):
        return False
    if kind == "cat" and step.argument("dim") not in (1, -3):
        return False
    if kind == "constant_pad_nd" and any(step.argument("pad")[:4]):
        return False
    return all(_fits_pixelwise(view, step, result, full, sizes) for view in step.views)


def _fits_pixelwise(view: View, step: Step, result: View, full: RecordedPass, sizes: Mapping[int, Size]) -> bool:
    """Return whether windows of an argument, or one value of it for each channel or map, can take its place."""
    if view.buffer in sizes:
        return view.size[2:] == result.size[2:] and pixel_stride(view, full) is not None
    if full.layouts.get(view.buffer, _IMAGES_FIRST) is None:
        channel_dim = 0 if "batch_norm" in step.operator else len(view.size) - 3
        return all(size == 1 or dim == channel_dim for dim, size in enumerate(view.size))
    one_each = view.size[2:] in (result.size[2:], (1, 1))
    return _is_map(view, full) and view.size[0] == full.batch_size and one_each


def _is_map(view: View, full: RecordedPass) -> bool:
    """Return whether the dimensions of a view are images, channels, height and width."""
    return len(view.size) == 4 and full.layouts.get(view.buffer) == _IMAGES_FIRST


def pixel_stride(view: View, full: RecordedPass) -> Size | None:
    """Return the step between pixels of its buffer that a view shows; None if it is no such grid.

    ``x[:, :, ::2, ::2]`` gives ``(2, 2)``.
    """
    base = full.tape.bases[view.buffer]
    if len(base.size) != 4 or (view.dtype, view.offset, view.size[:2]) != (base.dtype, base.offset, base.size[:2]):
        return None
    if view.stride[:2] != base.stride[:2] or not all(base.stride[2:]):
        return None
    steps = as_size(shown // whole for shown, whole in zip(view.stride[2:], base.stride[2:], strict=True))
    for dim, step in enumerate(steps, start=2):
        if step <= 0 or view.stride[dim] != step * base.stride[dim] or view.size[dim] != -(-base.size[dim] // step):
            return None
    return steps
