"""Copy windows out of feature maps and into them; each window has its own place.

Positions are NumPy arrays: they are small, and NumPy works on small arrays faster than PyTorch.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Size = tuple[int, int]
"""Height and width."""
IntArray = NDArray[np.int64]


def crop(maps: Tensor, images: IntArray, origin: IntArray, size: Size, stride: Size = (1, 1)) -> Tensor:
    """Copy a window out of each of some maps.

    Args:
        maps: ``(N, C, H, W)``, in any memory format.
        images: ``(n,)``, indices of the maps.
        origin: ``(n, 2)``, row and column of each window's first pixel; windows may reach over the border of the map.
        size: Height and width of the windows, in pixels.
        stride: Steps on the map from one pixel of a window to the next.

    Returns:
        ``(n, C, h, w)``; pixels outside of the map have undefined values.
    """
    rows = _lines(origin, 0, size, stride).clip(0, maps.shape[2] - 1)
    if stride[1] == 1 and size[1] > 1:
        cropped = _crop_by_rows(maps, images, origin, rows, size[1])
        if cropped is not None:
            return cropped
    columns = _lines(origin, 1, size, stride).clip(0, maps.shape[3] - 1)
    index = _memory_index(maps, images, rows, columns)
    pixels = _memory(maps).index_select(0, as_tensor(index.reshape(-1), maps)).view(index.shape)
    return pixels.permute(0, 3, 1, 2) if _channels_last(maps) else pixels


def _crop_by_rows(maps: Tensor, images: IntArray, origin: IntArray, rows: IntArray, width: int) -> Tensor | None:
    """Copy whole rows of windows, which is faster; None if a row is not contiguous or would leave the memory."""
    image_stride, channel_stride, row_stride, column_stride = maps.stride()
    channels_last, channels = _channels_last(maps), maps.shape[1]
    if column_stride != (channels if channels_last else 1):
        return None
    corner = images * image_stride + origin[:, 1] * column_stride + int(maps.storage_offset())
    first = corner[:, None] + rows * row_stride
    length = width * column_stride
    last = maps.untyped_storage().nbytes() // maps.element_size() - length
    if first.min() < 0 or first.max() + (0 if channels_last else (channels - 1) * channel_stride) > last:
        return None
    row_at = maps.as_strided((last + 1, length), (1, 1), 0)
    if channels_last:
        cropped = row_at.index_select(0, as_tensor(first.reshape(-1), maps))
        return cropped.view(*rows.shape, width, channels).permute(0, 3, 1, 2)
    first = first[:, None] + (np.arange(channels) * channel_stride)[:, None]
    return row_at.index_select(0, as_tensor(first.reshape(-1), maps)).view(*first.shape, width)


def paste_(maps: Tensor, images: IntArray, values: Tensor, origin: IntArray) -> None:
    """Write windows ``(n, C, h, w)`` into some maps in place; every window lies within its map."""
    size = values.shape[2], values.shape[3]
    index = _memory_index(maps, images, _lines(origin, 0, size), _lines(origin, 1, size))
    values = values.permute(0, 2, 3, 1) if _channels_last(maps) else values
    _memory(maps).index_copy_(0, as_tensor(index.reshape(-1), maps), values.reshape(-1))


def inside(map_size: Size, origin: IntArray, size: Size, stride: Size = (1, 1)) -> NDArray[np.bool_] | None:
    """Return which pixels of windows lie within their map.

    Returns:
        ``(n, 1, h, w)``; None if all of them do.
    """
    reach = (size[0] - 1) * stride[0], (size[1] - 1) * stride[1]
    if not len(origin) or (origin.min() >= 0 and bool((origin.max(axis=0) + reach < map_size).all())):
        return None
    rows, columns = (_lines(origin, dim, size, stride) for dim in (0, 1))
    rows_inside, columns_inside = (rows >= 0) & (rows < map_size[0]), (columns >= 0) & (columns < map_size[1])
    mask: NDArray[np.bool_] = (rows_inside[:, :, None] & columns_inside[:, None, :])[:, None]
    return mask


def as_tensor(array: NDArray[np.generic], like: Tensor) -> Tensor:
    """Return an array as a tensor on the device of another tensor."""
    return torch.from_numpy(array).to(like.device)


def _memory_index(maps: Tensor, images: IntArray, rows: IntArray, columns: IntArray) -> IntArray:
    """Return the position of each pixel in memory: ``(n, h, w, C)`` for channels-last maps, else ``(n, C, h, w)``."""
    image_stride, channel_stride, row_stride, column_stride = maps.stride()
    lines = (images * image_stride + int(maps.storage_offset()))[:, None] + rows * row_stride
    pixels: IntArray = lines[:, :, None] + (columns * column_stride)[:, None, :]
    channels: IntArray = np.arange(maps.shape[1]) * channel_stride
    return pixels[..., None] + channels if _channels_last(maps) else pixels[:, None] + channels[:, None, None]


def _memory(tensor: Tensor) -> Tensor:
    """Return all memory behind a tensor, as one dimension."""
    return tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0)


def _channels_last(maps: Tensor) -> bool:
    """Return whether the channels of a pixel are adjacent in memory."""
    return maps.stride(1) == 1 and maps.shape[1] > 1


def _lines(origin: IntArray, dim: int, size: Size, stride: Size = (1, 1)) -> IntArray:
    """Return the rows (``dim`` 0), ``(n, h)``, or the columns (``dim`` 1), ``(n, w)``, of windows."""
    lines: IntArray = origin[:, dim, None] + np.arange(0, size[dim] * stride[dim], stride[dim])
    return lines
