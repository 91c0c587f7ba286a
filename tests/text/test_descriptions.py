import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.shared_data import FOLDER
from resilient_heads.errors import DescriptionError, DuplicateClassWarning, EmbeddingError
from resilient_heads.text.descriptions.class_descriptions import ClassDescriptions, match_report
from resilient_heads.text.embeddings import ClassEmbeddings, Provenance

CAT_DOG = (("cat", ("It purrs.", "It has whiskers.")), ("dog", ("It barks.",)))


def load(content: object, tmp_path: Path, names: list[str] | None = None) -> ClassDescriptions:
    path = tmp_path / "d.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return ClassDescriptions.load(path, names)


@pytest.mark.parametrize(
    "content",
    [
        {"cat": ["It purrs.", "It has whiskers."], "dog": ["It barks."]},
        {"cat": ["It purrs.", "It has whiskers."], "dog": "It barks."},
        {"cat": {"sound": "It purrs.", "face": ["It has whiskers."]}, "dog": {"q": {"deep": ["It barks."]}}},
        [
            {"name": "cat", "descriptions": ["It purrs.", "It has whiskers."]},
            {"class": "dog", "prompts": ["It barks."]},
        ],
        {"meta": {"by": "me"}, "descriptions": {"cat": ["It purrs.", "It has whiskers."], "dog": ["It barks."]}},
    ],
)
def test_layouts_found_in_the_wild(content: object, tmp_path: Path) -> None:
    found = load(content, tmp_path)
    assert tuple(zip(found.class_names, found.sentences, strict=True)) == CAT_DOG


def test_saved_with_provenance_and_equal_bytes(tmp_path: Path) -> None:
    made = ClassDescriptions(("cat", "dog"), (("Ä cat.",), ("A dog.",)), {"written_by": "hand", "at": "home"})
    assert made.save(tmp_path / "a").read_bytes() == made.save(tmp_path / "b").read_bytes()
    found = ClassDescriptions.load(tmp_path / "a")
    assert found == made
    assert found.sha256 == ClassDescriptions(made.class_names, made.sentences).sha256


def test_matching_is_by_name_never_by_position(tmp_path: Path) -> None:
    found = load({"waffle": ["A grid."], "Apple_pie": ["A crust."]}, tmp_path, ["apple pie", "waffle"])
    assert found.sentences == (("A crust.",), ("A grid.",))


def test_report_says_what_was_not_found() -> None:
    report = match_report(
        ["apple pie", "ramen", "steak", "pho"],
        {"apple_pie": ["x"], "sushi": ["y"], "pho": [], "Steak": ["z"], "STEAK": ["z"]},
    )
    assert report.key_of == {"apple pie": "apple_pie", "pho": "pho"}
    assert report.missing == ("ramen",)
    assert report.ambiguous == {"steak": ("Steak", "STEAK")}
    assert report.empty == ("pho",)
    assert report.unused == ("sushi",)
    assert not report.complete


def test_repaired_ragged_duplicated_padded_and_non_ascii(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    decomposed = unicodedata.normalize("NFD", "Crème brûlée has a crust.")
    found = load({"a": ["\n\nOne  line.\n", "One line."], "b": [decomposed, "Two.", "Three."]}, tmp_path)
    assert found.sentences == (("One line.",), ("Crème brûlée has a crust.", "Two.", "Three."))
    assert "'a' has 1 repeated descriptions" in caplog.text
    assert ClassDescriptions.match([unicodedata.normalize("NFD", "crème")], {"Crème": ["x"]}).sentences == (("x",),)


def test_998_keys_for_1000_classes(tmp_path: Path) -> None:
    with pytest.warns(DuplicateClassWarning):
        found = load({"crane": ["A bird."], "maillot": ["A suit."]}, tmp_path, ["crane", "maillot", "crane"])
    assert found.sentences[0] == found.sentences[2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": ["x"], "b": []}, r"1 of 2 classes have no description \('b'\)"),
        ({"a": ["x", ""]}, "non-empty sentence"),
        ({"a": ["x", None]}, "expected a sentence"),
        ({"a": 3}, "list of sentences"),
        ({"a": ["bad \ufffd char"]}, "decoded wrongly"),
        ({"a": ["\ud800"]}, "decoded wrongly"),
        ('{"a": ["x"], "a": ["y"]}', "stands twice"),
        ('{"a": ["x"', "not a JSON file"),
        ("3", "holds a int"),
        ([["x"]], "Entry 0"),
        ([{"who": "cat"}], "Entry 0 has the keys"),
        ({}, "class_names is empty"),
        ({"format": "resilient_heads.descriptions/1", "provenance": 3, "classes": {}}, "provenance"),
    ],
)
def test_hazards_are_refused_with_a_reason(content: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(DescriptionError, match=message):
        load(content, tmp_path)


def test_text_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_bytes('{"a": ["é"]}'.encode("latin-1"))
    with pytest.raises(DescriptionError, match="not UTF-8"):
        ClassDescriptions.load(tmp_path / "d.json")


def test_templates_say_what_descriptions_do_not() -> None:
    assert ClassDescriptions.match(["a_b"], None, templates=("a photo of a {}",)).sentences == (("a photo of a a b",),)
    with pytest.raises(DescriptionError, match="exactly one"):
        ClassDescriptions.match(["a"], None, templates=("no blank",))
    with pytest.raises(DescriptionError, match=r"matches 1 of 1 classes \('cow'\).*Unused descriptions: 'cat'"):
        ClassDescriptions.match(["cow"], {"cat": ["x"]})


@pytest.mark.parametrize("table", ["classes", "descriptions"])
@pytest.mark.parametrize("beside", [["It barks."], "It barks.", {"sound": ["It barks."]}])
def test_a_class_beside_the_table_of_classes_is_never_lost(table: str, beside: object, tmp_path: Path) -> None:
    with pytest.raises(DescriptionError, match=f"has 'dog' beside '{table}'.*move it in there"):
        load({table: {"cat": ["It purrs."]}, "dog": beside}, tmp_path)
    about = {"meta": {"by": "me"}, "questions": ["What is a {}?"], "Source": "a book", "seed": 7, "checked": True}
    assert load({table: {"cat": ["It purrs."]}, **about}, tmp_path).class_names == ("cat",)
    both = {"classes": ["cat"], "descriptions": {"cat": ["It purrs."]}}
    assert load(both, tmp_path).class_names == ("cat",)


def test_what_is_said_about_descriptions_is_none(tmp_path: Path) -> None:
    entry = {"descriptions": ["A."], "source": "http://x", "id": "n01"}
    assert load({"cat": entry}, tmp_path).sentences == (("A.",),)
    with pytest.raises(DescriptionError, match="has 'sound' beside 'descriptions'"):
        load({"cat": {**entry, "sound": ["It purrs."]}}, tmp_path)


@pytest.mark.parametrize("key", ["meta", "provenance", "names", "class_names", "templates"])
def test_a_remark_beside_classes_is_no_class(key: str, tmp_path: Path) -> None:
    content = {"cat": ["It purrs."], key: ["x"]}
    with pytest.raises(DescriptionError, match=f"has '{key}' among its classes"):
        load(content, tmp_path)
    assert load(content, tmp_path, ["cat"]).class_names == ("cat",)
    assert load(content, tmp_path, ["cat", key]).sentences == (("It purrs.",), ("x",))


def test_our_own_file_without_classes_is_told(tmp_path: Path) -> None:
    with pytest.raises(DescriptionError, match="holds no classes"):
        load({"format": "resilient_heads.descriptions/1", "provenance": {}, "classes": []}, tmp_path)


@pytest.mark.parametrize("parts", [(("a",), ("xyz",)), (("a", "b"), (("x",),)), ("a", (("x",),)), (("a",), ((3,),))])
def test_names_and_sentences_fit_together(parts: tuple[Any, Any]) -> None:
    with pytest.raises(DescriptionError, match=r"as long as|must be a tuple"):
        ClassDescriptions(*parts)


HALF = "\ud800"


def test_half_a_character_is_told_before_it_is_saved(tmp_path: Path) -> None:
    for parts in [((HALF,), (("x",),)), (("a",), ((HALF,),)), (("a",), (("x",),), {"by": HALF})]:
        with pytest.raises(DescriptionError, match="Half a character"):
            ClassDescriptions(*parts)  # type: ignore[arg-type]
    record = {"format": "resilient_heads.descriptions/1", "provenance": {"by": HALF}, "classes": {"a": ["x"]}}
    with pytest.raises(DescriptionError, match="Half a character"):
        load(record, tmp_path)
    with pytest.raises(EmbeddingError, match=r"class_names\[1\] cannot be written"):
        ClassEmbeddings(torch.eye(2), ("a", HALF))
    for field in ("encoder", "encoder_revision", "descriptions_sha256", "pooling", "weights_sha256"):
        with pytest.raises(EmbeddingError, match=f"provenance {field} cannot be written"):
            Provenance(**{field: HALF})


@pytest.mark.shared_data
def test_files_of_others_load() -> None:
    folder = FOLDER / "descriptions"
    assert len(ClassDescriptions.load(folder / "CuPL__cifar10_prompts_full.json").class_names) == 10
    with pytest.raises(DescriptionError, match="5 of 101 classes have no description"):
        ClassDescriptions.load(folder / "WaffleCLIP__descriptors_food101.json")
    assert len(ClassDescriptions.load(folder / "WaffleCLIP__descriptors_imagenet.json").class_names) == 1000
