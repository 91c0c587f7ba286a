"""Cut windows out of maps, each image's at its own place, and put windows into maps.

Places are kept on the CPU, as arrays: there are many of them to reckon with, and few numbers in each.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Size = tuple[int, int]
Numbers = NDArray[np.int64]


def crop(source: Tensor, images: Numbers, origin: Numbers, size: Size, stride: Size = (1, 1)) -> Tensor:
    """Cut a window out of some maps.

    Args:
        source: ``(N, C, H, W)``, of any memory format.
        images: ``(n,)``, which maps.
        origin: ``(n, 2)``, row and column where each window begins; it may lie partly, or entirely, outside.
        size: Height and width.
        stride: Pixels from one of the window to the next.

    Returns:
        ``(n, C, h, w)``; what is outside of the map holds anything.
    """
    ys = _lines(origin, 0, size, stride).clip(0, source.shape[2] - 1)
    in_one_piece = _crop_lines(source, images, origin, ys, size[1]) if stride[1] == 1 and size[1] > 1 else None
    if in_one_piece is not None:
        return in_one_piece
    xs = _lines(origin, 1, size, stride).clip(0, source.shape[3] - 1)
    index = _places(source, images, ys, xs)
    picked = _memory(source).index_select(0, as_tensor(index.reshape(-1), source)).view(index.shape)
    return picked.permute(0, 3, 1, 2) if _channels_last(source) else picked


def _crop_lines(source: Tensor, images: Numbers, origin: Numbers, ys: Numbers, width: int) -> Tensor | None:
    """Cut windows out line by line; None where a line's pixels do not lie side by side, or would leave the memory."""
    by_image, by_channel, by_row, by_column = source.stride()
    channels_last, channels = _channels_last(source), source.shape[1]
    if by_column != (channels if channels_last else 1):
        return None
    first = (images * by_image + origin[:, 1] * by_column + int(source.storage_offset()))[:, None] + ys * by_row
    length = width * by_column
    last = source.untyped_storage().nbytes() // source.element_size() - length
    if first.min() < 0 or first.max() + (0 if channels_last else (channels - 1) * by_channel) > last:
        return None
    lines = source.as_strided((last + 1, length), (1, 1), 0)
    if channels_last:
        picked = lines.index_select(0, as_tensor(first.reshape(-1), source))
        return picked.view(*ys.shape, width, channels).permute(0, 3, 1, 2)
    first = first[:, None] + (np.arange(channels) * by_channel)[:, None]
    return lines.index_select(0, as_tensor(first.reshape(-1), source)).view(*first.shape, width)


def paste_(target: Tensor, images: Numbers, values: Tensor, origin: Numbers) -> None:
    """Put windows ``(n, C, h, w)``, which lie inside, into some of the maps of a tensor."""
    size = values.shape[2], values.shape[3]
    index = _places(target, images, _lines(origin, 0, size), _lines(origin, 1, size))
    values = values.permute(0, 2, 3, 1) if _channels_last(target) else values
    _memory(target).index_copy_(0, as_tensor(index.reshape(-1), target), values.reshape(-1))


def inside(limit: Size, origin: Numbers, size: Size, stride: Size = (1, 1)) -> NDArray[np.bool_] | None:
    """Return which pixels of windows lie inside of maps of height and width ``limit``; None for all of them.

    Returns:
        ``(n, 1, h, w)``.
    """
    reach = (size[0] - 1) * stride[0], (size[1] - 1) * stride[1]
    if not len(origin) or (origin.min() >= 0 and bool((origin.max(axis=0) + reach < limit).all())):
        return None
    ys, xs = (_lines(origin, dim, size, stride) for dim in (0, 1))
    rows, columns = (ys >= 0) & (ys < limit[0]), (xs >= 0) & (xs < limit[1])
    shown: NDArray[np.bool_] = (rows[:, :, None] & columns[:, None, :])[:, None]
    return shown


def as_tensor(array: NDArray[np.generic], like: Tensor) -> Tensor:
    """Return an array on a tensor's device."""
    return torch.from_numpy(array).to(like.device)


def _places(tensor: Tensor, images: Numbers, ys: Numbers, xs: Numbers) -> Numbers:
    """Return where pixels lie in memory, in the tensor's order of dimensions: ``(n, C, h, w)`` or ``(n, h, w, C)``."""
    by_image, by_channel, by_row, by_column = tensor.stride()
    lines = (images * by_image + int(tensor.storage_offset()))[:, None] + ys * by_row
    pixels: Numbers = lines[:, :, None] + (xs * by_column)[:, None, :]
    channels: Numbers = np.arange(tensor.shape[1]) * by_channel
    return pixels[..., None] + channels if _channels_last(tensor) else pixels[:, None] + channels[:, None, None]


def _memory(tensor: Tensor) -> Tensor:
    """Return all memory behind a tensor."""
    return tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0)


def _channels_last(tensor: Tensor) -> bool:
    """Whether a pixel's channels lie side by side."""
    return tensor.stride(1) == 1 and tensor.shape[1] > 1


def _lines(origin: Numbers, dim: int, size: Size, stride: Size = (1, 1)) -> Numbers:
    """Return the rows (``dim`` 0) or columns (1) of windows, ``(n, h)`` or ``(n, w)``."""
    lines: Numbers = origin[:, dim, None] + np.arange(0, size[dim] * stride[dim], stride[dim])
    return lines
