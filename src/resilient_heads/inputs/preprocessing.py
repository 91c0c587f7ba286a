"""From a picture to what a model takes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resilient_heads.errors import ArgumentError, DataError
from resilient_heads.extras import require


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How pictures become tensors.

    Attributes:
        picture: From a PIL image in RGB to a tensor ``(C, H, W)``; None where nobody said how.
        mean: Of each channel, of values in [0, 1]; None where nobody said.
        std: Of each channel.
    """

    picture: Callable[[Any], Tensor] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def array(self, images: Tensor) -> Tensor:
        """Return uint8 images ``(N, C, H, W)`` as float32, scaled to [0, 1] and normalised.

        Raises:
            DataError: Mean and standard deviation are not known, or are of another number of channels.
        """
        if self.mean is None or self.std is None:
            raise DataError(
                "The images are uint8 and the model does not say how it wants them normalised; pass --mean and --std, "
                "such as --mean 0 0 0 --std 1 1 1 for none, or save them normalised, as float32."
            )
        if len(self.mean) != images.shape[1] or len(self.std) != images.shape[1]:
            raise DataError(
                f"The images have {images.shape[1]} channels, found {len(self.mean)} means and {len(self.std)} "
                "standard deviations."
            )
        shape = (-1, 1, 1)
        return (images.float() / 255 - torch.tensor(self.mean).view(shape)) / torch.tensor(self.std).view(shape)


def preprocessing_from(
    *, resize: int | None, crop: int | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Preprocessing | None:
    """Return a preprocessing from numbers; None where none is given.

    Args:
        resize: Length of the shorter side.
        crop: Side of the square cut from the middle.
        mean: Of each channel.
        std: Of each channel.

    Raises:
        ArgumentError: Mean without standard deviation or the reverse, or numbers that mean nothing.
    """
    if resize is None and crop is None and mean is None and std is None:
        return None
    if (mean is None) != (std is None) or (std is not None and not all(value > 0 for value in std)):
        raise ArgumentError("--mean and --std go together, one number a channel, and the latter are above 0.")
    if any(size is not None and size < 1 for size in (resize, crop)):
        raise ArgumentError("--resize and --crop are numbers of pixels, at least 1.")
    transforms = require("torchvision.transforms", extra="vision", purpose="folders of images")
    steps = [] if resize is None else [transforms.Resize(resize)]
    steps += [] if crop is None else [transforms.CenterCrop(crop)]
    steps.append(transforms.ToTensor())
    if mean is not None and std is not None:
        steps.append(transforms.Normalize(list(mean), list(std)))
    return Preprocessing(
        picture=transforms.Compose(steps),
        mean=None if mean is None else tuple(mean),
        std=None if std is None else tuple(std),
    )
