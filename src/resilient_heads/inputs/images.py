"""Images and labels from a folder of image files or from an array file."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from resilient_heads.checks import whole_number
from resilient_heads.errors import DataError
from resilient_heads.extras import require
from resilient_heads.inputs.error_context import error_context
from resilient_heads.inputs.preprocessing import Preprocessing


def read_images(path: Path, preprocessing: Preprocessing, *, most: int | None = None) -> tuple[Tensor, Tensor]:
    """Read labelled images into memory.

    Args:
        path: A folder with a subfolder of image files for each class (class i is the i-th of their sorted names), or an
            ``.npz`` file with ``images`` ``(N, C, H, W)`` and ``labels`` ``(N,)``. Images in uint8 are normalised,
            images in float32 are taken unchanged.
        preprocessing: The preprocessing that the model expects.
        most: Largest number of images, taken at even distances; None: all images.

    Returns:
        Images ``(N, C, H, W)`` and labels ``(N,)``, int64.

    Raises:
        ArgumentError: ``most`` is less than 1.
        DataError: The path holds something else, or an image cannot be decoded.
        FileNotFoundError: The path does not exist.
    """
    if most is not None:
        whole_number("--images", most, least=1)
    if path.is_dir():
        return _read_folder(path, preprocessing, most)
    if not path.exists():
        raise FileNotFoundError(f"There is no {path}; expected a folder of images or an .npz file.")
    return _read_arrays(path, preprocessing, most)


def _read_folder(path: Path, preprocessing: Preprocessing, most: int | None) -> tuple[Tensor, Tensor]:
    """Decode a folder in the layout of torchvision's ImageFolder."""
    datasets = require("torchvision.datasets", extra="vision", purpose="folders of images")
    if preprocessing.transform is None:
        raise DataError(
            "The preprocessing that the model expects is unknown; pass --resize, --crop, --mean and --std, as far as "
            "the model needs them."
        )
    with error_context(DataError, f"{path} is no folder with a subfolder of images for each class"):
        dataset = datasets.ImageFolder(path, transform=preprocessing.transform)
    images, labels = [], []
    for index in _evenly_spaced(len(dataset), most):
        with error_context(DataError, f"{dataset.samples[index][0]} cannot be used"):
            image, label = dataset[index]
        images.append(image)
        labels.append(label)
    if len({image.shape for image in images}) > 1:
        raise DataError(f"The images of {path} differ in size; pass --resize and --crop.")
    return torch.stack(images), torch.tensor(labels)


def _read_arrays(path: Path, preprocessing: Preprocessing, most: int | None) -> tuple[Tensor, Tensor]:
    """Read an .npz file without running code that it may hold."""
    expected = f"{path} is no .npz file with arrays 'images' and 'labels'"
    with error_context(DataError, expected), np.load(path, allow_pickle=False) as content:
        images, labels = content["images"], content["labels"]
    if images.ndim != 4 or labels.shape != images.shape[:1] or images.dtype not in (np.float32, np.uint8):
        raise DataError(
            f"{path} holds images {images.shape} {images.dtype} and labels {labels.shape}; expected (N, C, H, W) "
            "float32 or uint8, and (N,)."
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"The labels in {path} are {labels.dtype}; expected whole numbers.")
    chosen = _evenly_spaced(len(images), most)
    pixels = torch.from_numpy(images[chosen])
    if pixels.dtype == torch.uint8:
        pixels = preprocessing.normalize(pixels)
    return pixels, torch.from_numpy(labels[chosen].astype(np.int64))


def _evenly_spaced(count: int, most: int | None) -> list[int]:
    """Return at most ``most`` of ``count`` indices; evenly spaced, because files are sorted by class."""
    if most is None or most >= count:
        return list(range(count))
    return [index * count // most for index in range(most)]
