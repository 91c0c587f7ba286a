"""Where the images of a batch lie in a tensor."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from resilient_heads.incremental.recording.words import words


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """Which part of a tensor belongs to which image of the batch.

    Attributes:
        dim: The dimension that grows with the batch.
        fold: Entries of that dimension for each image; above 1 where a model folds windows or tokens into the batch.
        interleaved: If True, entry f of image i has index ``f * batch + i``; otherwise ``i * fold + f``.
    """

    dim: int = 0
    fold: int = 1
    interleaved: bool = False

    def split_images(self, tensor: Tensor) -> tuple[Tensor, int]:
        """Return a view of the tensor in which images have a dimension of their own, and this dimension."""
        if self.fold == 1:
            return tensor, self.dim
        if self.interleaved:
            return torch.unflatten(tensor, self.dim, (self.fold, -1)), self.dim + 1
        return torch.unflatten(tensor, self.dim, (-1, self.fold)), self.dim

    def of_image(self, tensor: Tensor, image: int) -> Tensor:
        """Return the part of one image, as a view."""
        split, dim = self.split_images(tensor)
        return split.select(dim, image)

    def select_images(self, source: Tensor, images: Tensor, out: Tensor) -> Tensor:
        """Copy the parts of some images, in this order, to ``out``, which has room for that many images."""
        split, dim = self.split_images(source)
        target, _ = self.split_images(out)
        if target.is_contiguous() and split.is_contiguous():
            torch.index_select(split, dim, images, out=target)
        else:
            target.copy_(split.index_select(dim, images))
        return out


def layout_from_shapes(
    large: tuple[int, ...], small: tuple[int, ...], large_batch: int, small_batch: int
) -> BatchLayout | None:
    """Return where images lie in a tensor, given its shape for two batch sizes; None if these are equal.

    Shapes do not show the order: ``interleaved`` is False.

    Raises:
        ValueError: The shapes differ in more than one dimension that grows in proportion to the batch.
    """
    if large == small:
        return None
    if len(large) == len(small):
        growing = [dim for dim, (a, b) in enumerate(zip(large, small, strict=True)) if a != b]
        if len(growing) == 1:
            dim = growing[0]
            fold, rest = divmod(small[dim], small_batch)
            if not rest and large[dim] == fold * large_batch:
                return BatchLayout(dim, fold)
    raise ValueError(f"shapes {large} and {small} do not belong to batches of {large_batch} and {small_batch} images")


def resolve_order(layout: BatchLayout, contents: Sequence[Tensor], images: Sequence[int]) -> BatchLayout | None:
    """Find out whether a layout is interleaved, from the entries that change when one image changes.

    Args:
        layout: The layout, with ``interleaved`` unknown.
        contents: The tensor for some images, and again after a change of one image, for each of ``images``.
        images: The changed image.

    Returns:
        The layout; None if the contents fit both orders, or neither.
    """
    orders = (False, True) if layout.fold > 1 else (False,)
    candidates = [BatchLayout(layout.dim, layout.fold, order) for order in orders]
    others = [dim for dim in range(contents[0].ndim) if dim != layout.dim]
    first, *changed = (words(content.resolve_neg()) for content in contents)
    for content, image in zip(changed, images, strict=True):
        differs = first != content
        entries = differs.amax(dim=others) if others else differs
        if not bool(entries.any()):
            return None
        candidates = [known for known in candidates if not bool((entries & ~_entries(known, entries, image)).any())]
    return candidates[0] if len(candidates) == 1 else None


def _entries(layout: BatchLayout, like: Tensor, image: int) -> Tensor:
    """Return a mask of the entries of the batch dimension that belong to an image."""
    mask = torch.zeros_like(like)
    BatchLayout(0, layout.fold, layout.interleaved).of_image(mask, image).fill_(True)
    return mask


def with_changed_image(images: Tensor, image: int) -> Tensor:
    """Return a copy of a batch in which one image is replaced by another one; integers keep to those in the batch."""
    changed = images.clone(memory_format=torch.preserve_format)
    if images.dtype.is_floating_point:
        changed[image] = images[image].flip(-1) * -1.5 + images[image - 1] * 0.25
    else:
        changed[image] = images[image - 1].flip(-1)
    return changed
