"""From an image file to the tensor that a model takes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resilient_heads.checks import real_number, whole_number
from resilient_heads.errors import ArgumentError, DataError
from resilient_heads.extras import require


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How images become tensors.

    Attributes:
        transform: Function from a PIL image in RGB to a tensor ``(C, H, W)``; None if unknown.
        mean: Mean of each channel, for values in [0, 1]; None if unknown.
        std: Standard deviation of each channel; None if unknown.
        options: The options of a command that gave it.
    """

    transform: Callable[[Any], Tensor] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    options: frozenset[str] = frozenset()

    def normalize(self, images: Tensor) -> Tensor:
        """Return uint8 images ``(N, C, H, W)`` as float32, scaled to [0, 1] and normalised.

        Raises:
            DataError: ``mean`` or ``std`` is unknown, or has another number of channels than the images.
        """
        if self.mean is None or self.std is None:
            raise DataError(
                "The images are uint8, and the normalisation that the model expects is unknown; pass --mean and --std "
                "(--mean 0 0 0 --std 1 1 1 for no normalisation), or save normalised images as float32."
            )
        if len(self.mean) != images.shape[1] or len(self.std) != images.shape[1]:
            raise DataError(
                f"The images have {images.shape[1]} channels, found {len(self.mean)} means and {len(self.std)} "
                "standard deviations."
            )
        shape = (-1, 1, 1)
        return (images.float() / 255 - torch.tensor(self.mean).view(shape)) / torch.tensor(self.std).view(shape)


def preprocessing_from(
    models: Preprocessing,
    *,
    resize: int | None,
    crop: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Preprocessing:
    """Return the preprocessing that the options of a command describe; without such options, that of the model.

    Without ``mean`` and ``std``, the model's normalisation stays. Without ``resize`` and ``crop``, pictures keep their
    size if the model's preprocessing is unknown; if it is known, they must be given, since the model's size would be
    lost.

    Raises:
        ArgumentError: Only one of ``mean`` and ``std``, or a value out of its range.
    """
    given = {"--resize": resize, "--crop": crop, "--mean": mean, "--std": std}
    options = frozenset(name for name, value in given.items() if value is not None)
    if not options:
        return models
    if (mean is None) != (std is None):
        raise ArgumentError("--mean and --std must be given together, one number a channel.")
    if mean is None or std is None:
        mean, std = models.mean, models.std
    else:
        mean = tuple(real_number("--mean", value, least=-1e6, most=1e6) for value in mean)
        std = tuple(real_number("--std", value, above=0, most=1e6) for value in std)
        if len(mean) != len(std):
            raise ArgumentError(f"--mean has {len(mean)} numbers and --std {len(std)}; expected one a channel.")
        if max(map(abs, mean)) > 1 or max(std) > 1:
            raise ArgumentError(
                f"--mean and --std are for values in [0, 1], found {mean} and {std}; divide numbers for values in "
                "[0, 255] by 255."
            )
    if models.transform is not None and resize is None and crop is None:
        return Preprocessing(mean=mean, std=std, options=options)
    transforms = require("torchvision.transforms", extra="vision", purpose="folders of images")
    steps = [] if resize is None else [transforms.Resize(whole_number("--resize", resize, least=1))]
    steps += [] if crop is None else [transforms.CenterCrop(whole_number("--crop", crop, least=1))]
    steps.append(transforms.ToTensor())
    steps += [] if mean is None or std is None else [transforms.Normalize(list(mean), list(std))]
    return Preprocessing(transform=transforms.Compose(steps), mean=mean, std=std, options=options)
