"""The images and labels of a campaign: checked, and held in memory in the order of the data."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resilient_heads.campaign.golden.digests import add_values
from resilient_heads.errors import DataError
from resilient_heads.evaluation import reason_of

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

_USED_UP = "A generator can be read once; pass a list or a DataLoader to read it again."

Data = Iterable[Any] | tuple[Tensor, Tensor]
"""A DataLoader or any iterable of ``(images, labels)`` batches, or one pair of tensors."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelledImages:
    """All images of a campaign.

    Attributes:
        images: ``(I, ...)`` on the CPU.
        labels: ``(I,)`` int64.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def sha256(self) -> str:
        """Digest of shapes, dtypes, images and labels."""
        digest = hashlib.sha256()
        for tensor in (self.images, self.labels):
            digest.update(f"{tuple(tensor.shape)} {tensor.dtype};".encode())
            add_values(digest, tensor)
        return digest.hexdigest()

    def check_labels(self, num_classes: int) -> None:
        """Raise DataError unless every label is a class of the model."""
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= num_classes:
            raise DataError(
                f"The labels run from {low} to {high}, but the model has {num_classes} classes; expected labels from 0 "
                f"to {num_classes - 1}."
            )


def collect(data: Data, *, what: str = "data") -> LabelledImages:
    """Read all batches into memory.

    Args:
        data: Batches of images and labels, or one pair of tensors.
        what: Name of the data in errors.

    Raises:
        DataError: The data are empty, or are not images with integer labels.
    """
    batches: list[Any] = [data] if _is_pair(data) else list(_iterate(data, what))
    if not batches:
        raise DataError(f"{what} is empty; expected at least one batch of (images, labels). {_USED_UP}")
    for batch in batches:
        _check_batch(batch, what)
    try:
        images = torch.cat([batch[0].detach().cpu() for batch in batches])
    except RuntimeError as error:
        raise DataError(f"The images of {what} differ in shape from batch to batch: {error}.") from error
    labels = torch.cat([batch[1].detach().cpu().long() for batch in batches])
    if not len(labels):
        raise DataError(f"{what} is empty; expected at least one image.")
    _require_numbers(images, what)
    return LabelledImages(images, labels)


def collect_images(data: Data, *, what: str) -> Iterable[Tensor]:
    """Yield batches of images from data with or without labels.

    Raises:
        DataError: The data are empty, or a batch is not a tensor.
    """
    batches = [data] if _is_pair(data) or isinstance(data, Tensor) else _iterate(data, what)
    count = 0
    for batch in batches:
        images = batch[0] if isinstance(batch, tuple | list) and batch else batch
        if not isinstance(images, Tensor):
            raise DataError(f"{what} must hold batches of image tensors, found {_describe(batch)}. {_way(batch)}")
        if len(images):
            _require_numbers(images, what, first=count)
            count += len(images)
            yield images
    if not count:
        raise DataError(f"{what} is empty; expected at least one image. {_USED_UP}")


def _iterate(data: Data, what: str) -> Iterator[Any]:
    """Yield the batches of the data; turn an error of the data's own code into a DataError."""
    batched = isinstance(data, Iterable) or hasattr(data, "__getitem__")
    if isinstance(data, Tensor | str | bytes | Mapping) or not batched:
        raise DataError(
            f"{what} must be an iterable of (images, labels) batches or a pair of tensors, found {_describe(data)}."
        )
    if not isinstance(data, Iterable):
        raise DataError(
            f"{what} must be batches of (images, labels), found the data set {type(data).__name__}, which holds single "
            "images; pass torch.utils.data.DataLoader(dataset, batch_size=64)."
        )
    batches = iter(data)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except Exception as error:
            raise DataError(f"{what} raised an error while it was read. {reason_of(error)}") from error
        yield batch


def _require_numbers(images: Tensor, what: str, *, first: int = 0) -> None:
    """Raise DataError if an image holds NaN or infinite values; ``first`` is the number of the first image."""
    if images.is_floating_point() and not bool((usable := images.flatten(1).isfinite().all(dim=1)).all()):
        wrong = (~usable).nonzero().flatten() + first
        raise DataError(
            f"{len(wrong)} images of {what} hold NaN or infinite values, first image {int(wrong[0])}; check the "
            "preprocessing, or leave these images out."
        )


def _is_pair(data: Any) -> bool:
    """Whether the data are one pair of tensors, images and labels, and not two batches that are tensors."""
    return (
        isinstance(data, tuple | list)
        and len(data) == 2
        and isinstance(data[0], Tensor)
        and not (isinstance(data[1], Tensor) and data[1].ndim in (data[0].ndim, 3, 4, 5))
        and not (isinstance(data[1], tuple | list) and bool(data[1]) and isinstance(data[1][0], Tensor))
    )


def _check_batch(batch: Any, what: str) -> None:
    """Raise DataError unless a batch holds images with one integer label each."""
    if not isinstance(batch, tuple | list) or len(batch) != 2 or not all(isinstance(part, Tensor) for part in batch):
        raise DataError(
            f"{what} must hold batches of (images, labels) with a vector of integer labels, found {_describe(batch)}. "
            f"{_way(batch)}"
        )
    images, labels = batch
    if labels.ndim != 1 or labels.dtype not in _INTEGERS:
        raise DataError(
            f"{what} must have a vector of integer labels, one for each image; found labels {_describe(labels)}. "
            f"{_way_of_labels(labels)}"
        )
    if len(images) != len(labels):
        raise DataError(f"A batch of {what} has {len(images)} images and {len(labels)} labels.")


def _way(batch: Any) -> str:
    """Return what to do with a batch that is no pair of tensors."""
    if isinstance(batch, Mapping):
        return 'Pass a generator of pairs, such as ((b["image"], b["label"]) for b in loader).'
    if isinstance(batch, tuple | list) and len(batch) > 2 and all(isinstance(part, Tensor) for part in batch[:2]):
        return "Pass a generator of pairs, such as ((b[0], b[1]) for b in loader)."
    return "Make tensors of them by torch.as_tensor(...)."


def _way_of_labels(labels: Tensor) -> str:
    """Return what to do with labels that are no vector of integers."""
    if labels.ndim == 2 and labels.shape[1] > 1:
        return "For one column a class, pass labels.argmax(dim=1)."
    if labels.ndim == 2:
        return "Pass labels.squeeze(1)" + ("." if labels.dtype in _INTEGERS else ".long().")
    return "Pass labels.long()." if labels.ndim == 1 else "Pass one label for each image."


def _describe(batch: Any) -> str:
    """Return the type, shape and dtype of a batch, as an error shows them."""
    if isinstance(batch, tuple | list):
        parts = [_describe(part) for part in batch[:3]] + ["..."] * (len(batch) > 3)
        return f"({', '.join(parts)})"
    if isinstance(batch, Mapping):
        return f"{type(batch).__name__} with the keys {', '.join(map(repr, batch))}"
    if isinstance(batch, Tensor):
        return f"tensor{tuple(batch.shape)} of {batch.dtype}"
    return type(batch).__name__
