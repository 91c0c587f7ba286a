"""Windows of tensors, each image's at its own place, and single operations on them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from resilient_heads.incremental.recording.execute import as_list
from resilient_heads.incremental.recording.tape import Step, View, replace_views
from resilient_heads.incremental.recording.words import words
from resilient_heads.incremental.windows.crops import Numbers, Size, as_tensor, crop, inside, paste_
from resilient_heads.incremental.windows.receptive_field import Local, Reach, unpadded


@dataclass(frozen=True, slots=True)
class Window:
    """Parts of maps, ``(images, channels, height, width)``.

    Attributes:
        values: ``(n, C, h, w)``.
        origin: ``(n, 2)``, row and column at which each begins.
    """

    values: Tensor
    origin: Numbers

    @property
    def size(self) -> Size:
        """Height and width."""
        return self.values.shape[2], self.values.shape[3]

    def rows(self, chosen: Numbers) -> "Window":
        """Return some of the windows."""
        return Window(self.values.index_select(0, as_tensor(chosen, self.values)), self.origin[chosen])


def cover(window: Window, start: Numbers, size: Size, stride: Size = (1, 1)) -> Tensor | None:
    """Return parts of windows, ``(n, C, h, w)``; None where these do not hold all of them.

    Args:
        window: Of some maps.
        start: ``(n, 2)``, where each part begins, counted in pixels that are ``stride`` apart.
        size: Height and width of the parts.
        stride: Pixels of the maps from one of the part to the next.
    """
    begin = start * stride - window.origin
    if inside(window.size, begin, size, stride) is not None:
        return None
    return crop(window.values, np.arange(len(begin)), begin, size, stride)


def put_(parts: Tensor, window: Window, start: Numbers, stride: Size = (1, 1)) -> None:
    """Write windows over those pixels of parts of the same maps that both hold; the rest is as for :func:`cover`."""
    if stride == (1, 1) and inside((parts.shape[2], parts.shape[3]), window.origin - start, window.size) is None:
        paste_(parts, np.arange(len(parts)), window.values, window.origin - start)
        return
    begins, group = np.unique(start * stride - window.origin, axis=0, return_inverse=True)
    for number, begin in enumerate(begins.tolist()):
        into, own = zip(
            *(_shared(*ends) for ends in zip(begin, parts.shape[2:], window.size, stride, strict=True)), strict=True
        )
        target, values = parts[..., into[0], into[1]], window.values[..., own[0], own[1]]
        if target.numel():
            rows = as_tensor(np.flatnonzero(group == number), parts)
            target.index_copy_(0, rows, values.index_select(0, rows))


def _shared(begin: int, length: int, limit: int, step: int) -> tuple[slice, slice]:
    """Return which lines of a part, and which of a window, are the same, given the line with which the part begins."""
    first = max(0, -(begin // step))
    last = max(first, min(length, -((begin - limit) // step)))
    return slice(first, last), slice(begin + first * step, begin + last * step, step) if last > first else slice(0)


def differs(window: Window, golden: Tensor, images: Numbers) -> Tensor:
    """Return which windows differ from golden maps, ``(n,)`` bool."""
    before = crop(golden, images, window.origin, window.size)
    return (words(window.values) != words(before)).flatten(1).any(dim=1)


def struck_pixels(struck: Tensor, golden: Tensor) -> Numbers | None:
    """Return the pixel in which each map differs from a golden one, ``(N, 2)``; None where one differs in several.

    A map that does not differ gets some pixel.
    """
    images, _, ys, xs = (words(struck) != words(golden)).nonzero().unbind(1)
    pixels = ys * golden.shape[3] + xs
    place = pixels.new_zeros(len(golden)).index_copy_(0, images, pixels)
    if not torch.equal(place[images], pixels):
        return None
    return np.stack(np.divmod(place.cpu().numpy(), golden.shape[3]), axis=1)


def run_local(step: Step, local: Local, inputs: Callable[[View], Tensor]) -> Tensor:
    """Run an operation on windows.

    Args:
        step: The operation.
        local: How it is run on windows.
        inputs: Gives for each tensor argument what it reads of it, padding included.
    """

    def laid_out(view: View) -> Tensor:
        values = inputs(view)
        return values if len(view.size) != 4 or not values.numel() else _laid_out(values, view)

    args = step.args if local.reach is None else unpadded(step)
    kwargs = {name: replace_views(value, laid_out) for name, value in step.kwargs}
    result: Tensor = as_list(step.func(*(replace_views(value, laid_out) for value in args), **kwargs))[0]
    return result


def input_window(reach: Reach | None, origin: Numbers, size: Size) -> tuple[Numbers, Size]:
    """Return where the windows begin that an operation reads, and their size, given those of its result."""
    return (origin, size) if reach is None else (reach.inputs(origin), reach.read(size))


def _laid_out(values: Tensor, view: View) -> Tensor:
    """Return windows in the memory format of the maps that they are of, for it decides which kernel is taken."""
    images, channels, height, width = values.shape
    if (images, channels) == view.size[:2] and (height, width) == view.size[2:]:
        return values  # a whole tensor, such as a weight
    strides = (channels * height * width, height * width, width, 1)
    if view.stride[1] == 1 and channels > 1:
        strides = (channels * height * width, 1, width * channels, channels)
    if values.stride() == strides:
        return values
    return torch.empty_strided(values.shape, strides, dtype=values.dtype, device=values.device).copy_(values)
