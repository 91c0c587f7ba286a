"""Which class of the model a folder is; where that is unclear, the user is asked."""

import json
from pathlib import Path

import pytest

from resilient_heads.errors import DataError
from resilient_heads.inputs.class_order import conflict_with, order_of, with_synsets

TEN = [str(number) for number in range(10)]
ELEVEN = [str(number) for number in range(11)]
CIFAR = tuple((name,) for name in ("airplane", "auto", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"))
IMAGENET = (("tench",), *((f"word {number}",) for number in range(1, 999)), ("toilet tissue",))


def index(names: list[str], labels: object = None, **options: object) -> dict[str, int]:
    settings = {"folder": Path("data"), **options}
    return order_of(names, labels, **settings).index  # type: ignore[arg-type]


def written(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_without_labels_the_sorted_names_are_assumed() -> None:
    order = order_of(["cat", "ant", "bee"], None, folder=Path("data"))
    assert list(order.index.items()) == [("ant", 0), ("bee", 1), ("cat", 2)]
    assert order.assumed


def test_numbers_are_assumed_where_both_orders_agree() -> None:
    assert index(TEN) == {name: int(name) for name in TEN}
    assert index(["01", "02", "10"]) == {"01": 0, "02": 1, "10": 2}


def test_numbers_whose_orders_differ_are_refused_and_either_can_be_chosen() -> None:
    with pytest.raises(DataError, match=r"--sort numeric if .* or --sort name if .* reads '10' before '2'"):
        index(ELEVEN)
    assert index(ELEVEN, sort="numeric") == {name: int(name) for name in ELEVEN}
    assert index(ELEVEN, sort="name")["10"] == 2
    assert index(["cat", "dog"], sort="name") == {"cat": 0, "dog": 1}
    with pytest.raises(DataError, match="--sort numeric needs folders that are numbers, found 'cat'"):
        index(["1", "cat"], sort="numeric")
    with pytest.raises(DataError, match="Two folders are the same number"):
        index(["1", "01"], sort="numeric")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["dog", "cat"], {"cat": 3, "dog": 5}),
        (["Dog", " CAT_"], {" CAT_": 3, "Dog": 5}),
        (TEN, {name: int(name) for name in TEN}),  # ten numbers for ten classes
    ],
)
def test_the_models_labels_decide(names: list[str], expected: dict[str, int]) -> None:
    order = order_of(names, CIFAR, folder=Path("data"))
    assert order.index == expected
    assert not order.assumed


def test_words_of_a_label_count_where_they_are_unique() -> None:
    labels = (("tench, Tinca tinca",), ("crane",), ("crane, lifting",), ("great_white-shark",))
    assert index(["Tinca Tinca", "crane", "Great White Shark"], labels) == {
        "Tinca Tinca": 0,
        "crane": 1,
        "Great White Shark": 3,
    }


def test_synset_folders_are_classes_of_imagenet() -> None:
    assert index(["n02102040", "n01440764", "n15075141"], IMAGENET) == {
        "n01440764": 0,
        "n02102040": 217,
        "n15075141": 999,
    }
    assert with_synsets(CIFAR) == CIFAR
    assert len(set(with_synsets(IMAGENET))) == 1000


UNCLEAR = [
    (["cat", "cow"], CIFAR, r"1 of 2 class folders have no name of the model's labels: 'cow'.*--class-index FILE"),
    (["catt", "dog"], CIFAR, "the nearest name is 'cat'"),
    (["cat", "Cat"], CIFAR, "'cat' and 'Cat' are both class 3 of the model's labels"),
    (["n01440764"], CIFAR, "have no name of the model's labels"),
    (["0", "1"], CIFAR, "have no name of the model's labels"),
    (["crane"], (("crane",), ("crane",)), "'crane' is the name of classes 0 and 1 of the model's labels"),
]


@pytest.mark.parametrize(("names", "labels", "message"), UNCLEAR)
def test_unclear_names_are_refused(names: list[str], labels: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        index(names, labels)


@pytest.mark.parametrize(
    "content",
    [
        {"cat": 3, "dog": 5, "bird": 2},
        {"3": "cat", "5": "dog"},
        {"3": ["n02123045", "cat"], "5": ["n02084071", "dog"]},
        ["a", "b", "c", "cat", "d", "dog"],
        "\ufeff" + json.dumps({"cat": 3, "dog": 5}),
    ],
)
def test_a_file_gives_the_classes(tmp_path: Path, content: object) -> None:
    path = written(tmp_path / "index.json", content)
    assert index(["dog", "Cat"], None, index_file=path) == {"Cat": 3, "dog": 5}
    written(tmp_path / "class_to_idx.json", content)
    assert index(["dog", "Cat"], None, folder=tmp_path) == {"Cat": 3, "dog": 5}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "gives no class indices"),
        ("{", "gives no class indices"),
        ("[" * 100_000, "nested too deeply|recursion"),
        ({}, "it is empty"),
        ("7", "it holds a int"),
        ({"cat": -1}, "the entry '-1' is wrong"),
        ({"cat": 1.5}, "the entry 'cat' is wrong"),
        ({"cat": True}, "the entry 'cat' is wrong"),
        ({"cat": None}, "the entry 'cat' is wrong"),
        ('{"cat": 0, "cat": 1}', "'cat' stands there twice"),
        ({"cat": 0, "dog": 0}, "class 0 stands there twice"),
        ({"0": []}, "the entry '0' is wrong"),
        ({"0": [1]}, "class 0 has a name that is no text"),
        ([" "], "class 0 has a name that is no text"),
        ({"0": "cow"}, "2 of 2 class folders have no name"),
    ],
)
def test_a_file_without_class_indices_is_refused(tmp_path: Path, content: object, message: str) -> None:
    path = written(tmp_path / "index.json", content)
    with pytest.raises(DataError, match=message):
        index(["cat", "dog"], None, index_file=path)


def test_a_missing_file_of_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no file"):
        index(["cat"], None, index_file=tmp_path / "absent.json")


def test_a_file_beside_the_data_may_not_contradict_the_model(tmp_path: Path) -> None:
    path = written(tmp_path / "class_to_idx.json", {"cat": 0, "dog": 1})
    with pytest.raises(
        DataError, match=r"'cat' is class 0 in .*, but class 3 in the model's labels \(the model's class 0"
    ):
        index(["cat", "dog"], CIFAR, folder=tmp_path)
    order = order_of(["cat", "dog"], CIFAR, folder=tmp_path, index_file=path)
    assert order.index == {"cat": 0, "dog": 1}
    assert "'cat' is class 0" in str(conflict_with(CIFAR, order))


def test_a_file_with_other_names_for_the_models_classes_is_no_conflict(tmp_path: Path) -> None:
    written(tmp_path / "class_to_idx.json", {"Katze": 3, "Hund": 5})
    assert index(["Hund", "Katze"], CIFAR, folder=tmp_path) == {"Katze": 3, "Hund": 5}
