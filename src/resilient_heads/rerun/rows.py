"""Where the images of a batch lie in a tensor."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """The part of each image in a tensor.

    Attributes:
        dim: The dimension that grows with the batch.
        fold: Entries of that dimension for each image, as for windows that are folded into the batch.
        interleaved: Whether entry f of image i is number ``f * batch + i``, not ``i * fold + f``.
    """

    dim: int = 0
    fold: int = 1
    interleaved: bool = False

    def apart(self, tensor: Tensor) -> tuple[Tensor, int]:
        """Return a view of the tensor in which images have a dimension of their own, and which it is."""
        if self.fold == 1:
            return tensor, self.dim
        if self.interleaved:
            return torch.unflatten(tensor, self.dim, (self.fold, -1)), self.dim + 1
        return torch.unflatten(tensor, self.dim, (-1, self.fold)), self.dim

    def of_image(self, tensor: Tensor, image: int) -> Tensor:
        """Return the part of one image, as a view."""
        parts, dim = self.apart(tensor)
        return parts.select(dim, image)

    def pick(self, source: Tensor, images: Tensor, into: Tensor) -> Tensor:
        """Copy the parts of some images, in their order, into a tensor for that many images."""
        parts, dim = self.apart(source)
        places, _ = self.apart(into)
        places.copy_(parts.index_select(dim, images))
        return into

    def spread(self, source: Tensor, images: Tensor, into: Tensor) -> Tensor:
        """Undo :meth:`pick`: copy the first parts to the places of the given images."""
        parts, dim = self.apart(source)
        places, _ = self.apart(into)
        places.index_copy_(dim, images, parts.narrow(dim, 0, len(images)))
        return into


def rows_from_shapes(many: tuple[int, ...], few: tuple[int, ...], batch: int, smaller: int) -> Rows | None:
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
                return Rows(dim, fold)
    raise ValueError(f"shapes {many} and {few} do not belong to {batch} and {smaller} images")


def settle_order(rows: Rows, before: Tensor, after: Tensor, image: int) -> Rows | None:
    """Return the order of folded images, from a tensor before and after one image was changed; None if unclear."""
    changed = words(before) != words(after)
    others = [dim for dim in range(changed.ndim) if dim != rows.dim]
    along = changed.amax(dim=others) if others else changed
    if not bool(along.any()):
        return None
    fitting = []
    for choice in (rows, Rows(rows.dim, rows.fold, interleaved=True)) if rows.fold > 1 else (rows,):
        own = torch.zeros_like(along)
        choice_on_line = Rows(0, choice.fold, choice.interleaved)
        choice_on_line.of_image(own, image).fill_(True)
        if not bool((along & ~own).any()):
            fitting.append(choice)
    return fitting[0] if len(fitting) == 1 else None


def words(tensor: Tensor) -> Tensor:
    """Return a tensor's bits as integers, so that NaN equals NaN and 0 differs from -0."""
    if tensor.dtype.is_complex:
        return words(torch.view_as_real(tensor))
    if not tensor.dtype.is_floating_point:
        return tensor
    return tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
