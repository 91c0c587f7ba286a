"""Where the images of a batch lie in a tensor."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from resilient_heads.incremental.recording.words import words


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """The part of each image in a tensor.

    Attributes:
        dim: The dimension that grows with the batch.
        fold: Entries of that dimension for each image, as for windows that are folded into the batch.
        interleaved: Whether entry f of image i is number ``f * batch + i``, not ``i * fold + f``.
    """

    dim: int = 0
    fold: int = 1
    interleaved: bool = False

    def split_images(self, tensor: Tensor) -> tuple[Tensor, int]:
        """Return a view of the tensor in which images have a dimension of their own, and which it is."""
        if self.fold == 1:
            return tensor, self.dim
        if self.interleaved:
            return torch.unflatten(tensor, self.dim, (self.fold, -1)), self.dim + 1
        return torch.unflatten(tensor, self.dim, (-1, self.fold)), self.dim

    def of_image(self, tensor: Tensor, image: int) -> Tensor:
        """Return the part of one image, as a view."""
        parts, dim = self.split_images(tensor)
        return parts.select(dim, image)

    def pick(self, source: Tensor, images: Tensor, into: Tensor) -> Tensor:
        """Copy the parts of some images, in their order, into a tensor for that many images."""
        parts, dim = self.split_images(source)
        places, _ = self.split_images(into)
        if places.is_contiguous() and parts.is_contiguous():
            torch.index_select(parts, dim, images, out=places)
        else:
            places.copy_(parts.index_select(dim, images))
        return into


def layout_from_shapes(many: tuple[int, ...], few: tuple[int, ...], batch: int, smaller: int) -> BatchLayout | None:
    """Return how a tensor grows from ``smaller`` to ``batch`` images; its order is left open where several are folded.

    None means that its shape does not depend on the batch.

    Raises:
        ValueError: The shapes differ in another way.
    """
    if many == few:
        return None
    if len(many) == len(few):
        growing = [dim for dim, (a, b) in enumerate(zip(many, few, strict=True)) if a != b]
        if len(growing) == 1:
            dim = growing[0]
            fold, rest = divmod(few[dim], smaller)
            if not rest and many[dim] == fold * batch:
                return BatchLayout(dim, fold)
    raise ValueError(f"shapes {many} and {few} do not belong to {batch} and {smaller} images")


def resolve_order(rows: BatchLayout, contents: Sequence[Tensor], images: Sequence[int]) -> BatchLayout | None:
    """Return the order of images in a tensor, by what changing one of them changed; None if it is unclear.

    Args:
        rows: Where they lie, with the order left open.
        contents: The tensor for some images, and again with one image changed, for each of ``images``.
        images: Which image was changed.
    """
    fitting = [rows, BatchLayout(rows.dim, rows.fold, interleaved=True)] if rows.fold > 1 else [rows]
    others = [dim for dim in range(contents[0].ndim) if dim != rows.dim]
    for content, image in zip(contents[1:], images, strict=True):
        differs = words(contents[0]) != words(content)
        along = differs.amax(dim=others) if others else differs
        if not bool(along.any()):
            return None
        fitting = [choice for choice in fitting if not bool((along & ~_places(choice, along, image)).any())]
    return fitting[0] if len(fitting) == 1 else None


def _places(rows: BatchLayout, along: Tensor, image: int) -> Tensor:
    """Return which entries of a dimension belong to an image."""
    own = torch.zeros_like(along)
    BatchLayout(0, rows.fold, rows.interleaved).of_image(own, image).fill_(True)
    return own


def with_changed_image(images: Tensor, image: int) -> Tensor:
    """Return some images, one of them another one."""
    others = images.clone(memory_format=torch.preserve_format)
    others[image] = images[image].flip(-1) * -1.5 + images[image - 1] * 0.25
    return others
