"""Images and labels of every kind that people pass: used rightly, or refused with what was found and what to do."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from helpers.small_net import IMAGES, LABELS, SmallNet, small_campaign
from resilient_heads.campaign.golden.data import collect, collect_images
from resilient_heads.errors import DataError, ForwardError

LABEL_KINDS: dict[str, tuple[Any, str]] = {
    "float": (LABELS.float(), r"found labels tensor\(16,\) of torch\.float32\. Pass labels\.long\(\)"),
    "bool": (LABELS > 2, r"found labels tensor\(16,\) of torch\.bool\. Pass labels\.long\(\)"),
    "one-hot": (nn.functional.one_hot(LABELS, 5), r"found labels tensor\(16, 5\).*Pass labels\.argmax|labels\.argmax"),
    "probabilities": (torch.rand(16, 5), r"found labels tensor\(16, 5\) .*labels\.argmax\(dim=1\)"),
    "column": (LABELS[:, None], r"found labels tensor\(16, 1\) .*Pass labels\.squeeze\(1\)\."),
    "single": (torch.tensor(3), r"found labels tensor\(\) of torch\.int64\. Pass one label for each image"),
    "list": (LABELS.tolist(), r"found \(tensor\(16, 3, 12, 12\) .*, \(int, int, int, \.\.\.\)\)\. Make tensors"),
    "numpy": (LABELS.numpy(), r"found \(tensor.*, ndarray\)\. Make tensors of them by torch\.as_tensor"),
    "strings": (["cat"] * 16, r"\(str, str, str, \.\.\.\)\)"),
    "none": (None, r"found \(tensor.*, NoneType\)"),
    "fewer": (LABELS[:9], "has 16 images and 9 labels"),
    "ignored": (torch.where(LABELS[0] == LABELS, -100, LABELS), "labels run from -100 to .* 5 classes"),
    "beyond": (LABELS + 4, "labels from 0 to 4"),
}


@pytest.mark.parametrize("batched", [False, True], ids=["pair", "batches"])
@pytest.mark.parametrize("kind", LABEL_KINDS)
def test_labels_that_are_no_vector_of_classes_are_described(kind: str, batched: bool) -> None:
    labels, message = LABEL_KINDS[kind]
    with pytest.raises(DataError, match=message):
        small_campaign(SmallNet(), [(IMAGES, labels)] if batched else (IMAGES, labels))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_labels_may_have_any_integer_type(dtype: torch.dtype) -> None:
    found = collect((IMAGES, LABELS.to(dtype)))
    assert torch.equal(found.labels, LABELS)
    assert found.labels.dtype == torch.int64


class Items(Dataset[Any]):
    """Single images, in a form that a test chooses."""

    def __init__(self, form: Callable[[int], Any]) -> None:
        self.form = form

    def __len__(self) -> int:
        return 16

    def __getitem__(self, number: int) -> Any:
        return self.form(number)


def failing() -> Iterator[tuple[Tensor, Tensor]]:
    yield IMAGES[:4], LABELS[:4]
    raise RuntimeError("a worker died")


SPOILT = IMAGES.clone()
SPOILT[3, 0, 0, 0] = torch.nan
SPOILT[5, 0, 0, 0] = torch.inf

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "dictionaries": (
        lambda: DataLoader(Items(lambda i: {"image": IMAGES[i], "label": LABELS[i]}), batch_size=4),
        r"found dict with the keys 'image', 'label'\. Pass a generator of pairs",
    ),
    "triples": (
        lambda: DataLoader(Items(lambda i: (IMAGES[i], LABELS[i], i)), batch_size=4),
        r"Pass a generator of pairs, such as \(\(b\[0\], b\[1\]\) for b in loader\)",
    ),
    "data set": (
        lambda: Items(lambda i: (IMAGES[i], LABELS[i])),
        r"the data set Items.*DataLoader\(dataset, batch",
    ),
    "tensor data set": (lambda: TensorDataset(IMAGES, LABELS), "the data set TensorDataset"),
    "path": (lambda: "folder", "found str"),
    "numpy images": (lambda: (IMAGES.numpy(), LABELS), "found ndarray. Make tensors"),
    "error": (failing, "data raised an error while it was read. RuntimeError: a worker died"),
    "nothing": (list, "data is empty; .*A generator can be read once; pass a list"),
    "used up": (lambda: iter(()), "data is empty; .*A generator can be read once"),
    "no numbers": (lambda: (SPOILT, LABELS), "2 images of data hold NaN or infinite values, first image 3"),
    "channels only": (lambda: (IMAGES[0], LABELS), "has 3 images and 16 labels"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_data_that_are_no_batches_are_refused_with_what_to_do(kind: str) -> None:
    make, message = REFUSED[kind]
    with pytest.raises(DataError, match=message):
        small_campaign(SmallNet(), make())


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ((IMAGES * 50).byte(), "torch.uint8, cpu, in the golden run: RuntimeError: Input type"),
        (IMAGES.permute(0, 2, 3, 1), r"\(8, 12, 12, 3\).*to have 3 channels, but got 12"),
        (IMAGES.double(), "torch.float64"),
        (IMAGES[:, 0], r"\(8, 12, 12\), torch.float32"),
    ],
)
def test_images_that_the_model_refuses_are_described(images: Tensor, message: str) -> None:
    with pytest.raises(ForwardError, match=message):
        small_campaign(SmallNet(), (images, LABELS))


def test_one_generator_for_data_and_calibration_is_noticed() -> None:
    batches = zip(IMAGES.split(4), LABELS.split(4), strict=True)
    with pytest.raises(DataError, match=r"calibration is empty; .*A generator can be read once; pass a list"):
        small_campaign(SmallNet(), batches, protocol="goldeneye", calibration=batches)


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (SPOILT, "2 images of calibration hold NaN or infinite values, first image 3"),
        ([IMAGES[:2], SPOILT], "2 images of calibration hold .* first image 5"),
        ([IMAGES.numpy()], "found ndarray. Make tensors"),
        ([{"image": IMAGES}], "found dict with the keys 'image'"),
        (failing(), "calibration raised an error while it was read"),
    ],
)
def test_calibration_that_cannot_be_used_is_refused(calibration: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(collect_images(calibration, what="calibration"))


def test_two_batches_without_labels_are_no_pair() -> None:
    features = torch.randn(4, 6), torch.randn(4, 6)
    assert len(list(collect_images(list(features), what="calibration"))) == 2
    assert len(list(collect_images([IMAGES, IMAGES], what="calibration"))) == 2
    assert len(list(collect_images((IMAGES, LABELS), what="calibration"))) == 1


def test_equal_data_give_equal_digests_in_any_batches() -> None:
    pairs = list(zip(IMAGES.split(5), LABELS.split(5), strict=True))
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=3)
    assert collect((IMAGES, LABELS)).sha256 == collect(pairs).sha256 == collect(loader).sha256
