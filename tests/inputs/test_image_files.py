"""Images that the command line names: values and labels are those of the files."""

from pathlib import Path

import numpy as np
import pytest
import torch

from resilient_heads.errors import ArgumentError, DataError
from resilient_heads.inputs.images import ClassChoice, read_images
from resilient_heads.inputs.preprocessing import Preprocessing, preprocessing_from

image = pytest.importorskip("PIL.Image")


class Code:
    """Would run on unpickling."""

    def __reduce__(self) -> tuple:
        return (exec, ("raise SystemExit('pickle ran')",))


PIXELS = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)
KNOWN = Preprocessing(mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0))


def test_uint8_arrays_are_normalised(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=np.array([4, 5], dtype=np.int32))
    read = read_images(tmp_path / "a.npz", KNOWN)
    images, labels = read.images, read.labels
    assert labels.tolist() == [4, 5]
    assert labels.dtype == torch.int64
    for channel, (mean, std) in enumerate(zip(KNOWN.mean, KNOWN.std, strict=True)):
        np.testing.assert_allclose(images[:, channel], (PIXELS[:, channel] / 255 - mean) / std, atol=1e-6)


def test_float32_arrays_are_taken_unchanged(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=PIXELS.astype(np.float32), labels=np.array([4, 5]))
    assert torch.equal(read_images(tmp_path / "a.npz", KNOWN).images, torch.from_numpy(PIXELS.astype(np.float32)))
    assert read_images(tmp_path / "a.npz", KNOWN, most=1).labels.tolist() == [4]


@pytest.mark.parametrize(
    ("preprocessing", "message"),
    [
        (Preprocessing(), "pass --mean and --std"),
        (Preprocessing(mean=(0.5,), std=(0.5,)), "3 channels, found 1 means"),
    ],
)
def test_uint8_arrays_without_a_fitting_normalisation_are_refused(
    tmp_path: Path, preprocessing: Preprocessing, message: str
) -> None:
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=np.array([4, 5]))
    with pytest.raises(DataError, match=message):
        read_images(tmp_path / "a.npz", preprocessing)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": PIXELS}, "no .npz file with arrays"),
        ({"images": PIXELS, "labels": np.array([1])}, "expected"),
        ({"images": PIXELS.astype(float), "labels": np.array([1, 2])}, "float64"),
        ({"images": PIXELS, "labels": np.array([1.0, 2.0])}, "whole numbers"),
        ({"images": PIXELS, "labels": np.array([Code(), Code()], dtype=object)}, "no .npz file with arrays"),
    ],
)
def test_arrays_that_are_no_labelled_images_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read_images(tmp_path / "a.npz", KNOWN)


def test_a_text_file_is_no_array_file(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_text("text")
    with pytest.raises(DataError, match=r"no \.npz file"):
        read_images(tmp_path / "a.npz", KNOWN)


@pytest.fixture
def squares() -> Preprocessing:
    """Cut every picture to 16x16 pixels and normalise it."""
    return preprocessing_from(Preprocessing(), resize=20, crop=16, mean=[0.5] * 3, std=[0.25] * 3)


def test_a_folder_of_pictures_is_read_at_even_distances(pictures: Path, squares: Preprocessing) -> None:
    read = read_images(pictures, squares, most=3)
    images, labels = read.images, read.labels
    assert images.shape == (3, 3, 16, 16)
    assert labels.tolist() == [0, 1, 2]
    assert images.mean(dim=(0, 2, 3)).abs().max() < 1


def test_pictures_of_different_sizes_are_refused(pictures: Path) -> None:
    with pytest.raises(
        DataError, match=r"differ in size \(\(3, 40, 50\), and \(3, 41, 50\) for 1\.png\); pass --resize and --crop"
    ):
        read_images(pictures, preprocessing_from(Preprocessing(), resize=None, crop=None, mean=[0.0], std=[1.0]))


def test_a_damaged_picture_is_named(pictures: Path, squares: Preprocessing) -> None:
    (pictures / "bee/4.png").write_text("not a picture")
    with pytest.raises(DataError, match=r"bee/4\.png cannot be decoded as a picture: UnidentifiedImageError"):
        read_images(pictures, squares)


def test_a_folder_without_subfolders_is_refused(tmp_path: Path, squares: Preprocessing) -> None:
    with pytest.raises(DataError, match="has no subfolder; expected a folder with a subfolder of pictures"):
        read_images(tmp_path, squares)


NO_OPTIONS = {"resize": None, "crop": None, "mean": None, "std": None}


@pytest.mark.parametrize("options", [{"mean": [0.1]}, {"mean": [0.1], "std": [0.0]}, {"resize": 0}, {"crop": -3}])
def test_wrong_options_of_preprocessing_are_refused(options: dict) -> None:
    with pytest.raises(ArgumentError, match="--"):
        preprocessing_from(Preprocessing(), **NO_OPTIONS | options)


def test_no_options_of_preprocessing_leave_it_to_the_model() -> None:
    assert preprocessing_from(KNOWN, **NO_OPTIONS) is KNOWN


def test_the_models_normalisation_stays_where_only_the_size_is_given(pictures: Path) -> None:
    known = Preprocessing(transform=lambda picture: 1 / 0, mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0))
    given = {"resize": 20, "crop": 16, "mean": None, "std": None}
    plain = read_images(pictures, preprocessing_from(Preprocessing(), **given)).images
    normal = read_images(pictures, preprocessing_from(known, **given)).images
    for channel, (mean, std) in enumerate(zip(known.mean, known.std, strict=True)):
        torch.testing.assert_close(normal[:, channel], (plain[:, channel] - mean) / std)


def test_the_models_size_is_not_lost_where_only_the_normalisation_is_given(pictures: Path) -> None:
    known = Preprocessing(transform=lambda picture: 1 / 0, mean=(0.5,) * 3, std=(0.5,) * 3)
    given = preprocessing_from(known, resize=None, crop=None, mean=[0.0] * 3, std=[1.0] * 3)
    with pytest.raises(DataError, match="The size of images that the model expects is unknown; pass --resize, --crop"):
        read_images(pictures, given)


def test_calibration_needs_no_order_of_classes(pictures: Path, squares: Preprocessing) -> None:
    (pictures / "10").mkdir()
    (pictures / "2").mkdir()
    assert read_images(pictures, squares).labels.unique().tolist() == [2, 3, 4]
    with pytest.raises(DataError, match="holds no picture, so it is unclear whether it counts as a class"):
        read_images(pictures, squares, classes=ClassChoice())


def test_a_number_of_means_that_pictures_do_not_have_is_refused(pictures: Path) -> None:
    four = preprocessing_from(Preprocessing(), resize=20, crop=16, mean=[0.0] * 4, std=[1.0] * 4)
    with pytest.raises(ArgumentError, match="--mean has 4 numbers; pictures have 3 channels"):
        read_images(pictures, four)


@pytest.mark.parametrize(
    ("labels", "message"), [([], "holds no image"), ([-1, 0], "holds the label -1; expected images with labels from 0")]
)
def test_arrays_without_usable_labels_are_refused(tmp_path: Path, labels: list[int], message: str) -> None:
    np.savez(tmp_path / "a.npz", images=PIXELS[: len(labels)], labels=np.array(labels, dtype=np.int64))
    with pytest.raises(DataError, match=message):
        read_images(tmp_path / "a.npz", KNOWN)


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "pipe").touch()
    with pytest.raises(DataError, match="is neither a folder nor a file"):
        read_images(Path("/dev/null"), KNOWN)
