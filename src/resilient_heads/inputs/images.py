"""Images and labels from a folder of picture files or from an array file."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from resilient_heads.checks import printable, whole_number
from resilient_heads.errors import ArgumentError, DataError
from resilient_heads.inputs.class_folders import ClassFolders, find_class_folders
from resilient_heads.inputs.class_order import ClassOrder, Labels, Sort, order_of
from resilient_heads.inputs.error_context import error_context
from resilient_heads.inputs.pictures import read_picture
from resilient_heads.inputs.preprocessing import Preprocessing


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassChoice:
    """What decides which class of the model a folder is; see :func:`~resilient_heads.inputs.class_order.order_of`.

    Attributes:
        labels: Names of the model's classes; None if unknown.
        index_file: JSON with the class of each name.
        sort: Order of the folders.
    """

    labels: Labels | None = None
    index_file: Path | None = None
    sort: Sort | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSet:
    """Labelled images in memory.

    Attributes:
        images: ``(N, C, H, W)``.
        labels: ``(N,)``, int64.
        order: The class of each folder; None for an array file.
        folders: The files of each folder; None for an array file.
    """

    images: Tensor
    labels: Tensor
    order: ClassOrder | None = None
    folders: ClassFolders | None = None


def read_images(
    path: Path, preprocessing: Preprocessing, *, most: int | None = None, classes: ClassChoice | None = None
) -> ImageSet:
    """Read labelled images into memory.

    Args:
        path: A folder with a subfolder of picture files for each class, or an ``.npz`` file with ``images``
            ``(N, C, H, W)`` and ``labels`` ``(N,)``. Images in uint8 are normalised, images in float32 are taken
            unchanged.
        preprocessing: The preprocessing that the model expects.
        most: Largest number of images, taken at even distances; None: all images.
        classes: What decides the class of each folder. None: the labels do not matter, and each image has the rank of
            its folder's name.

    Raises:
        ArgumentError: ``most`` is less than 1, or an option does not apply to the kind of data.
        DataError: The path holds something else, an image cannot be decoded, or the order of classes is unclear.
        FileNotFoundError: The path does not exist.
    """
    if most is not None:
        whole_number("--images", most, least=1)
    if path.is_dir():
        return _read_folder(path, preprocessing, most, classes)
    if not path.exists():
        raise FileNotFoundError(f"There is no {printable(path)}; expected a folder of images or an .npz file.")
    if not path.is_file():
        raise DataError(f"{printable(path)} is neither a folder nor a file; expected a folder of images or an .npz.")
    if classes is not None and (classes.index_file is not None or classes.sort is not None):
        raise ArgumentError("--class-index and --sort order folders of images; the labels of an .npz file are numbers.")
    return _read_arrays(path, preprocessing, most)


def _read_folder(path: Path, preprocessing: Preprocessing, most: int | None, classes: ClassChoice | None) -> ImageSet:
    """Decode the pictures of a folder; find their classes first, because that is quick."""
    if preprocessing.transform is None:
        raise DataError(
            "The size of images that the model expects is unknown; pass --resize, --crop, --mean and --std, as far as "
            "the model needs them."
        )
    folders = find_class_folders(path)
    if preprocessing.mean is not None and len(preprocessing.mean) not in (1, 3):
        raise ArgumentError(f"--mean has {len(preprocessing.mean)} numbers; pictures have 3 channels.")
    names = list(folders.files)
    if classes is None:
        order = ClassOrder(index={name: rank for rank, name in enumerate(names)}, origin="the sorted names")
    else:
        order = order_of(names, classes.labels, folder=path, index_file=classes.index_file, sort=classes.sort)
    if order.assumed and folders.empty:
        raise DataError(
            f"The folder {printable(path / folders.empty[0])} holds no picture, so it is unclear whether it counts as "
            "a class; remove it, or pass --class-index."
        )
    files = [(file, order.index[name]) for name in names for file in folders.files[name]]
    images, labels = [], []
    for index in _evenly_spaced(len(files), most):
        file, label = files[index]
        images.append(_read_file(file, preprocessing))
        labels.append(label)
        if images[-1].shape != images[0].shape:
            raise DataError(
                f"The images of {printable(path)} differ in size ({tuple(images[0].shape)}, and "
                f"{tuple(images[-1].shape)} for {file.name}); pass --resize and --crop."
            )
    return ImageSet(images=torch.stack(images), labels=torch.tensor(labels), order=order, folders=folders)


def _read_file(file: Path, preprocessing: Preprocessing) -> Tensor:
    """Decode one picture and turn it into a tensor ``(C, H, W)``."""
    assert preprocessing.transform is not None
    picture = read_picture(file)
    with error_context(DataError, f"{printable(file)} cannot be used"):
        return preprocessing.transform(picture)


def _read_arrays(path: Path, preprocessing: Preprocessing, most: int | None) -> ImageSet:
    """Read an .npz file without running code that it may hold."""
    expected = f"{printable(path)} is no .npz file with arrays 'images' and 'labels'"
    with error_context(DataError, expected), np.load(path, allow_pickle=False) as content:
        images, labels = content["images"], content["labels"]
    if images.ndim != 4 or labels.shape != images.shape[:1] or images.dtype not in (np.float32, np.uint8):
        raise DataError(
            f"{printable(path)} holds images {images.shape} {images.dtype} and labels {labels.shape}; expected "
            "(N, C, H, W) float32 or uint8, and (N,)."
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"The labels in {printable(path)} are {labels.dtype}; expected whole numbers.")
    if not len(labels) or labels.min() < 0:
        found = "no image" if not len(labels) else f"the label {labels.min()}"
        raise DataError(f"{printable(path)} holds {found}; expected images with labels from 0.")
    unused = preprocessing.options if images.dtype == np.float32 else preprocessing.options & {"--resize", "--crop"}
    if unused:
        raise ArgumentError(
            f"{', '.join(sorted(unused))} would change nothing: images of an .npz file keep their size, and float32 "
            "images keep their values. Leave the options out."
        )
    chosen = _evenly_spaced(len(images), most)
    pixels = torch.from_numpy(images[chosen])
    if pixels.dtype == torch.uint8:
        pixels = preprocessing.normalize(pixels)
    return ImageSet(images=pixels, labels=torch.from_numpy(labels[chosen].astype(np.int64)))


def _evenly_spaced(count: int, most: int | None) -> list[int]:
    """Return at most ``most`` of ``count`` indices; evenly spaced, because files are sorted by class."""
    if most is None or most >= count:
        return list(range(count))
    return [index * count // most for index in range(most)]
