"""Windows of feature maps, one for each image at its own place, and operations on them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from resilient_heads.incremental.recording.tape import Step, View, as_list, replace_views
from resilient_heads.incremental.recording.words import words
from resilient_heads.incremental.windows.crops import IntArray, Size, as_tensor, crop, inside, paste_
from resilient_heads.incremental.windows.plan import WindowStep


@dataclass(frozen=True, slots=True)
class Window:
    """Windows of the maps in one tensor.

    Attributes:
        values: ``(n, C, h, w)``.
        origin: ``(n, 2)``, row and column of each window's first pixel.
    """

    values: Tensor
    origin: IntArray

    @property
    def size(self) -> Size:
        """Height and width."""
        return self.values.shape[2], self.values.shape[3]

    def rows(self, indices: IntArray) -> "Window":
        """Return some of the windows."""
        return Window(self.values.index_select(0, as_tensor(indices, self.values)), self.origin[indices])


def crop_window(window: Window, start: IntArray, size: Size, stride: Size = (1, 1)) -> Tensor | None:
    """Return parts of windows, ``(n, C, h, w)``; None if the windows do not hold them entirely.

    Args:
        window: The windows.
        start: ``(n, 2)``, origin of each part on the map, in units of ``stride``.
        size: Height and width of the parts.
        stride: Steps on the map from one pixel of a part to the next.
    """
    offset = start * stride - window.origin
    if inside(window.size, offset, size, stride) is not None:
        return None
    return crop(window.values, np.arange(len(offset)), offset, size, stride)


def copy_overlap_(parts: Tensor, window: Window, start: IntArray, stride: Size = (1, 1)) -> None:
    """Copy windows into parts of the same maps in place, where they overlap; see :func:`crop_window`."""
    if stride == (1, 1) and inside((parts.shape[2], parts.shape[3]), window.origin - start, window.size) is None:
        paste_(parts, np.arange(len(parts)), window.values, window.origin - start)
        return
    offsets, group = np.unique(start * stride - window.origin, axis=0, return_inverse=True)
    for number, offset in enumerate(offsets.tolist()):
        (rows, window_rows), (columns, window_columns) = (
            _overlap(*bounds) for bounds in zip(offset, parts.shape[2:], window.size, stride, strict=True)
        )
        target, values = parts[..., rows, columns], window.values[..., window_rows, window_columns]
        if target.numel():
            indices = as_tensor(np.flatnonzero(group == number), parts)
            target.index_copy_(0, indices, values.index_select(0, indices))


def _overlap(offset: int, length: int, window_length: int, step: int) -> tuple[slice, slice]:
    """Return the lines of a part that a window holds, and the same lines of the window.

    The part begins ``offset`` lines behind the first line of the window, and takes every ``step``-th line.
    """
    first = max(0, -(offset // step))
    last = max(first, min(length, -((offset - window_length) // step)))
    if last == first:
        return slice(first, first), slice(0)
    return slice(first, last), slice(offset + first * step, offset + last * step, step)


def differs_from_golden(window: Window, golden: Tensor, images: IntArray) -> Tensor:
    """Return which windows differ from golden maps in some bit, ``(n,)`` bool."""
    expected = crop(golden, images, window.origin, window.size)
    return (words(window.values) != words(expected)).flatten(1).any(dim=1)


def faulty_pixels(faulty: Tensor, golden: Tensor) -> IntArray | None:
    """Return row and column of the pixel in which each map differs from the golden one.

    Returns:
        ``(N, 2)``; (0, 0) for a map without a difference. None if a map differs in several pixels.
    """
    images, _, rows, columns = (words(faulty) != words(golden)).nonzero().unbind(1)
    pixels = rows * golden.shape[3] + columns
    by_image = pixels.new_zeros(len(golden)).index_copy_(0, images, pixels)
    if not torch.equal(by_image[images], pixels):
        return None
    return np.stack(np.divmod(by_image.cpu().numpy(), golden.shape[3]), axis=1)


def crop_input(
    step: WindowStep, maps: Tensor, images: IntArray, origin: IntArray
) -> tuple[Tensor, np.typing.NDArray[np.bool_] | None]:
    """Copy what result windows at ``origin`` read of an argument; padding gets its fill value.

    Returns:
        The values, ``(n, C, h, w)``, and which of their pixels are padding, ``(n, 1, h, w)``; None if there are none.
    """
    if step.field is None and maps.shape[2:] == (1, 1):  # one value for each map
        return crop(maps, images, np.zeros_like(origin), (1, 1)), None
    start, size = step.input_window(origin)
    values = crop(maps, images, start, size)
    within = None if step.field is None else inside((maps.shape[2], maps.shape[3]), start, size)
    if within is None or step.field is None:
        return values, None
    values.masked_fill_(as_tensor(~within, values), step.field.fill)
    return values, ~within


def run_on_windows(step: Step, window_step: WindowStep, inputs: Callable[[View], Tensor]) -> Tensor:
    """Run an operation on windows and return its first result.

    ``inputs`` returns what the windows read of a tensor argument, padding included.
    """

    def input_of(view: View) -> Tensor:
        values = inputs(view)
        return _in_recorded_format(values, view) if len(view.size) == 4 and values.numel() else values

    args = step.args if window_step.field is None else step.args_with(padding=[0, 0], ceil_mode=False)
    kwargs = {name: replace_views(value, input_of) for name, value in step.kwargs}
    result: Tensor = as_list(step.func(*(replace_views(value, input_of) for value in args), **kwargs))[0]
    return result


def _in_recorded_format(values: Tensor, view: View) -> Tensor:
    """Return windows in the memory format of their maps, since PyTorch chooses the kernel by it."""
    if values.shape == view.size:
        return values  # an unchanged argument, such as a weight
    _, channels, height, width = values.shape
    strides = (channels * height * width, height * width, width, 1)
    if view.stride[1] == 1 and channels > 1:
        strides = (channels * height * width, 1, width * channels, channels)
    if values.stride() == strides:
        return values
    return torch.empty_strided(values.shape, strides, dtype=values.dtype, device=values.device).copy_(values)
