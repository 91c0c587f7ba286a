"""The images and labels of a campaign: checked, and held in memory in the order of the data."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resilient_heads.campaign.golden.digests import add_values
from resilient_heads.errors import DataError

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

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
        raise DataError(f"{what} is empty; expected at least one batch of (images, labels).")
    for batch in batches:
        _check_batch(batch, what)
    try:
        images = torch.cat([batch[0].detach().cpu() for batch in batches])
    except RuntimeError as error:
        raise DataError(f"The images of {what} differ in shape from batch to batch: {error}.") from error
    labels = torch.cat([batch[1].detach().cpu().long() for batch in batches])
    if not len(labels):
        raise DataError(f"{what} is empty; expected at least one image.")
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
            raise DataError(f"{what} must hold batches of image tensors, found {type(images).__name__}.")
        if len(images):
            count += len(images)
            yield images
    if not count:
        raise DataError(f"{what} is empty; expected at least one image.")


def _iterate(data: Data, what: str) -> Iterable[Any]:
    """Return the data if it is an iterable of batches; raise DataError if it is not."""
    if isinstance(data, Tensor) or not isinstance(data, Iterable):
        raise DataError(
            f"{what} must be an iterable of (images, labels) batches or a pair of tensors, found {type(data).__name__}."
        )
    return data


def _is_pair(data: Any) -> bool:
    """Whether the data are one pair of tensors: images, and a vector of integer labels."""
    return (
        isinstance(data, tuple | list)
        and len(data) == 2
        and all(isinstance(part, Tensor) for part in data)
        and data[1].ndim == 1
        and data[1].dtype in _INTEGERS
    )


def _check_batch(batch: Any, what: str) -> None:
    """Raise DataError unless a batch holds images with one integer label each."""
    if not _is_pair(batch):
        raise DataError(
            f"{what} must hold batches of (images, labels) with a vector of integer labels, found {_describe(batch)}."
        )
    if len(batch[0]) != len(batch[1]):
        raise DataError(f"A batch of {what} has {len(batch[0])} images and {len(batch[1])} labels.")


def _describe(batch: Any) -> str:
    """Return the type and shape of a batch, as an error shows them."""
    if isinstance(batch, tuple | list):
        return f"({', '.join(_describe(part) for part in batch)})"
    return f"tensor{tuple(batch.shape)}" if isinstance(batch, Tensor) else type(batch).__name__
