"""Windows of tensors, each image's at its own place, and single operations on them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from resilient_heads.rerun.execute import as_list
from resilient_heads.rerun.reach import Local, Reach, Size, each, unpadded
from resilient_heads.rerun.rows import words
from resilient_heads.rerun.tape import Step, View, replace_views


@dataclass(frozen=True, slots=True)
class Window:
    """Parts of maps, ``(images, channels, height, width)``.

    Attributes:
        values: ``(n, C, h, w)``.
        origin: ``(n, 2)`` int64, row and column at which each begins.
    """

    values: Tensor
    origin: Tensor

    @property
    def size(self) -> Size:
        """Height and width."""
        return self.values.shape[2], self.values.shape[3]

    def rows(self, chosen: Tensor) -> "Window":
        """Return some of the windows."""
        return Window(self.values.index_select(0, chosen), self.origin.index_select(0, chosen))


def crop(source: Tensor, images: Tensor, origin: Tensor, size: Size, stride: Size = (1, 1)) -> Tensor:
    """Cut a window out of some maps.

    Args:
        source: ``(N, C, H, W)``, of any memory format.
        images: ``(n,)``, which maps.
        origin: ``(n, 2)``, where each window begins; it may lie partly, or entirely, outside.
        size: Height and width.
        stride: Pixels from one of the window to the next.

    Returns:
        ``(n, C, h, w)``; what is outside of the map holds anything.
    """
    ys = _lines(origin, 0, size, stride).clamp_(0, source.shape[2] - 1)
    in_one_piece = _crop_lines(source, images, origin, ys, size[1]) if stride[1] == 1 and size[1] > 1 else None
    if in_one_piece is not None:
        return in_one_piece
    xs = _lines(origin, 1, size, stride).clamp_(0, source.shape[3] - 1)
    index = _places(source, images, ys, xs)
    flat = source.as_strided((source.untyped_storage().nbytes() // source.element_size(),), (1,), 0)
    picked = flat.index_select(0, index.flatten()).view(index.shape)
    return picked.permute(0, 3, 1, 2) if _channels_last(source) else picked


def _crop_lines(source: Tensor, images: Tensor, origin: Tensor, ys: Tensor, width: int) -> Tensor | None:
    """Cut windows out line by line; None where a line's pixels do not lie side by side, or would leave the memory."""
    by_image, by_channel, by_row, by_column = source.stride()
    channels_last, channels = _channels_last(source), source.shape[1]
    if by_column != (channels if channels_last else 1):
        return None
    first = (images * by_image + origin[:, 1] * by_column + source.storage_offset())[:, None] + ys * by_row
    low, high = (int(end) for end in first.aminmax())
    length = width * by_column
    last = source.untyped_storage().nbytes() // source.element_size() - length
    if low < 0 or high + (0 if channels_last else (channels - 1) * by_channel) > last:
        return None
    lines = source.as_strided((last + 1, length), (1, 1), 0)
    if channels_last:
        return lines.index_select(0, first.flatten()).view(*ys.shape, width, channels).permute(0, 3, 1, 2)
    first = first[:, None] + (_range(source, channels) * by_channel)[:, None]
    return lines.index_select(0, first.flatten()).view(*first.shape, width)


def inside(limit: Size, origin: Tensor, size: Size, stride: Size = (1, 1)) -> Tensor | None:
    """Return which pixels of windows lie inside of maps of height and width ``limit``; None for all of them.

    Returns:
        ``(n, 1, h, w)`` bool.
    """
    last = origin + each(_reach(size, stride), origin)
    if bool(((origin >= 0) & (last < each(limit, origin))).all()):
        return None
    ys, xs = (_lines(origin, dim, size, stride) for dim in (0, 1))
    rows, columns = (ys >= 0) & (ys < limit[0]), (xs >= 0) & (xs < limit[1])
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def paste_(target: Tensor, images: Tensor, window: Window) -> None:
    """Put windows, which lie inside, into some of the maps of a tensor."""
    ys, xs = (_lines(window.origin, dim, window.size) for dim in (0, 1))
    index = _places(target, images, ys, xs)
    values = window.values.permute(0, 2, 3, 1) if _channels_last(target) else window.values
    flat = target.as_strided((target.untyped_storage().nbytes() // target.element_size(),), (1,), 0)
    flat.index_copy_(0, index.flatten(), values.reshape(-1))


def cover(window: Window, start: Tensor, size: Size, stride: Size = (1, 1)) -> Tensor | None:
    """Return parts of windows, ``(n, C, h, w)``; None where these do not hold all of them.

    Args:
        window: Of some maps.
        start: ``(n, 2)``, where each part begins, counted in pixels that are ``stride`` apart.
        size: Height and width of the parts.
        stride: Pixels of the maps from one of the part to the next.
    """
    begin = start * each(stride, start) - window.origin
    if inside(window.size, begin, size, stride) is not None:
        return None
    return crop(window.values, torch.arange(len(begin), device=begin.device), begin, size, stride)


def put_(parts: Tensor, window: Window, start: Tensor, stride: Size = (1, 1)) -> None:
    """Write windows over those pixels of parts of the same maps that both hold; the rest is as for :func:`cover`."""
    if stride == (1, 1):
        place = Window(window.values, window.origin - start)
        if inside((parts.shape[2], parts.shape[3]), place.origin, window.size) is None:
            paste_(parts, torch.arange(len(parts), device=parts.device), place)
            return
    begins, group = torch.unique(start * each(stride, start) - window.origin, dim=0, return_inverse=True)
    for number, begin in enumerate(begins.tolist()):
        into, own = zip(
            *(_shared(*ends) for ends in zip(begin, parts.shape[2:], window.size, stride, strict=True)), strict=True
        )
        target, values = parts[..., into[0], into[1]], window.values[..., own[0], own[1]]
        if len(begins) == 1:
            target.copy_(values)
        elif target.numel():
            rows = (group == number).nonzero().flatten()
            target.index_copy_(0, rows, values.index_select(0, rows))


def _shared(begin: int, length: int, limit: int, step: int) -> tuple[slice, slice]:
    """Return which lines of a part, and which of a window, are the same, given the line with which the part begins."""
    first = max(0, -(begin // step))
    last = max(first, min(length, -((begin - limit) // step)))
    return slice(first, last), slice(begin + first * step, begin + last * step, step) if last > first else slice(0)


def differs(window: Window, golden: Tensor, images: Tensor) -> Tensor:
    """Return which windows differ from golden maps, ``(n,)`` bool."""
    before = crop(golden, images, window.origin, window.size)
    return (words(window.values) != words(before)).flatten(1).any(dim=1)


def struck_pixels(struck: Tensor, golden: Tensor) -> Tensor | None:
    """Return the pixel in which each map differs from a golden one, ``(N, 2)``; None where one differs in several.

    A map that does not differ gets some pixel.
    """
    images, _, ys, xs = (words(struck) != words(golden)).nonzero().unbind(1)
    pixels = ys * golden.shape[3] + xs
    place = pixels.new_zeros(len(golden)).index_copy_(0, images, pixels)
    if not torch.equal(place[images], pixels):
        return None
    return torch.stack([place // golden.shape[3], place % golden.shape[3]], dim=1)


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


def input_window(reach: Reach | None, origin: Tensor, size: Size) -> tuple[Tensor, Size]:
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


def _places(tensor: Tensor, images: Tensor, ys: Tensor, xs: Tensor) -> Tensor:
    """Return where pixels lie in memory, in the tensor's order of dimensions: ``(n, C, h, w)`` or ``(n, h, w, C)``."""
    by_image, by_channel, by_row, by_column = tensor.stride()
    pixels = (images * by_image + tensor.storage_offset())[:, None, None] + (ys * by_row)[:, :, None]
    pixels = pixels + (xs * by_column)[:, None, :]
    channels = _range(tensor, tensor.shape[1]) * by_channel
    return pixels[..., None] + channels if _channels_last(tensor) else pixels[:, None] + channels[:, None, None]


def _channels_last(tensor: Tensor) -> bool:
    """Whether a pixel's channels lie side by side."""
    return tensor.stride(1) == 1 and tensor.shape[1] > 1


def _lines(origin: Tensor, dim: int, size: Size, stride: Size = (1, 1)) -> Tensor:
    """Return the rows (``dim`` 0) or columns (1) of windows, ``(n, h)`` or ``(n, w)``."""
    return origin[:, dim, None] + torch.arange(0, size[dim] * stride[dim], stride[dim], device=origin.device)


def _reach(size: Size, stride: Size) -> Size:
    """Return how far the last pixel of a window lies from its first one."""
    return (size[0] - 1) * stride[0], (size[1] - 1) * stride[1]


def _range(tensor: Tensor, count: int) -> Tensor:
    """Return 0, 1, 2, ... on the tensor's device."""
    return torch.arange(count, device=tensor.device)
