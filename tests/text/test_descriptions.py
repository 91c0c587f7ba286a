import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.shared_data import FOLDER
from resilient_heads.errors import DescriptionError, DuplicateClassWarning, EmbeddingError
from resilient_heads.text.descriptions.class_descriptions import ClassDescriptions
from resilient_heads.text.descriptions.matching import match_report
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
def test_layouts_of_other_projects_are_read(content: object, tmp_path: Path) -> None:
    found = load(content, tmp_path)
    assert tuple(zip(found.class_names, found.sentences, strict=True)) == CAT_DOG


def test_equal_descriptions_save_as_equal_bytes_with_their_provenance(tmp_path: Path) -> None:
    made = ClassDescriptions(("cat", "dog"), (("Ä cat.",), ("A dog.",)), {"written_by": "hand", "at": "home"})
    assert made.save(tmp_path / "a").read_bytes() == made.save(tmp_path / "b").read_bytes()
    found = ClassDescriptions.load(tmp_path / "a")
    assert found == made
    assert found.sha256 == ClassDescriptions(made.class_names, made.sentences).sha256


def test_a_mapping_is_matched_by_name(tmp_path: Path) -> None:
    found = load({"waffle": ["A grid."], "Apple_pie": ["A crust."]}, tmp_path, ["apple pie", "waffle"])
    assert found.sentences == (("A crust.",), ("A grid.",))


def test_the_match_report_lists_missing_ambiguous_empty_and_unused() -> None:
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


def test_blanks_duplicates_and_accents_are_cleaned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    decomposed = unicodedata.normalize("NFD", "Crème brûlée has a crust.")
    found = load({"a": ["\n\nOne  line.\n", "One line."], "b": [decomposed, "Two.", "Three."]}, tmp_path)
    assert found.sentences == (("One line.",), ("Crème brûlée has a crust.", "Two.", "Three."))
    assert "'a' has 1 repeated descriptions" in caplog.text
    assert ClassDescriptions.match([unicodedata.normalize("NFD", "crème")], {"Crème": ["x"]}).sentences == (("x",),)


def test_classes_of_the_same_name_share_their_description(tmp_path: Path) -> None:
    with pytest.warns(DuplicateClassWarning) as warned:
        found = load({"crane": ["A bird."], "maillot": ["A suit."]}, tmp_path, ["crane", "maillot", "crane"])
    assert len(warned) == 1
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
        ('{"a": ["x"], "a": ["y"]}', "occurs twice"),
        ('{"a": ["x"', "not a JSON file"),
        ("3", "a int at the top level"),
        ([["x"]], "Entry 0"),
        ([{"who": "cat"}], "Entry 0 has the keys"),
        ({}, "class_names is empty"),
        ({"format": "resilient_heads.descriptions/1", "provenance": 3, "classes": {}}, "provenance"),
    ],
)
def test_unusable_files_are_refused_with_a_reason(content: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(DescriptionError, match=message):
        load(content, tmp_path)


def test_text_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_bytes('{"a": ["é"]}'.encode("latin-1"))
    with pytest.raises(DescriptionError, match="not UTF-8"):
        ClassDescriptions.load(tmp_path / "d.json")


def test_templates_describe_classes_without_descriptions() -> None:
    assert ClassDescriptions.match(["a_b"], None, templates=("a photo of a {}",)).sentences == (("a photo of a a b",),)
    with pytest.raises(DescriptionError, match="exactly one"):
        ClassDescriptions.match(["a"], None, templates=("no blank",))
    with pytest.raises(DescriptionError, match="Pass descriptions, templates, or both"):
        ClassDescriptions.match(["a"], None)


def test_a_class_without_a_match_is_refused() -> None:
    with pytest.raises(DescriptionError, match=r"matches 1 of 1 classes \('cow'\).*Unused descriptions: 'cat'"):
        ClassDescriptions.match(["cow"], {"cat": ["x"]})


@pytest.mark.parametrize("table", ["classes", "descriptions"])
@pytest.mark.parametrize("beside", [["It barks."], "It barks.", {"sound": ["It barks."]}])
def test_a_class_beside_the_table_of_classes_is_refused(table: str, beside: object, tmp_path: Path) -> None:
    with pytest.raises(DescriptionError, match=f"has 'dog' beside '{table}'.*move it into '{table}'"):
        load({table: {"cat": ["It purrs."]}, "dog": beside}, tmp_path)
    about = {"meta": {"by": "me"}, "questions": ["What is a {}?"], "Source": "a book", "seed": 7, "checked": True}
    assert load({table: {"cat": ["It purrs."]}, **about}, tmp_path).class_names == ("cat",)
    both = {"classes": ["cat"], "descriptions": {"cat": ["It purrs."]}}
    assert load(both, tmp_path).class_names == ("cat",)


def test_metadata_beside_sentences_is_ignored(tmp_path: Path) -> None:
    entry = {"descriptions": ["A."], "source": "http://x", "id": "n01"}
    assert load({"cat": entry}, tmp_path).sentences == (("A.",),)
    with pytest.raises(DescriptionError, match="has 'sound' beside 'descriptions'"):
        load({"cat": {**entry, "sound": ["It purrs."]}}, tmp_path)


@pytest.mark.parametrize("key", ["meta", "provenance", "names", "class_names", "templates"])
def test_metadata_among_classes_is_a_class_only_if_the_caller_names_it(key: str, tmp_path: Path) -> None:
    content = {"cat": ["It purrs."], key: ["x"]}
    with pytest.raises(DescriptionError, match=f"has '{key}' among its classes"):
        load(content, tmp_path)
    assert load(content, tmp_path, ["cat"]).class_names == ("cat",)
    assert load(content, tmp_path, ["cat", key]).sentences == (("It purrs.",), ("x",))


def test_a_saved_file_without_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DescriptionError, match="has no classes"):
        load({"format": "resilient_heads.descriptions/1", "provenance": {}, "classes": []}, tmp_path)


@pytest.mark.parametrize("parts", [(("a",), ("xyz",)), (("a", "b"), (("x",),)), ("a", (("x",),)), (("a",), ((3,),))])
def test_names_and_sentences_that_do_not_fit_are_refused(parts: tuple[Any, Any]) -> None:
    with pytest.raises(DescriptionError, match=r"must be a sequence of strings|2 class names but 1 group"):
        ClassDescriptions(*parts)


HALF = "\ud800"  # half of a surrogate pair, which JSON can hold and UTF-8 cannot


@pytest.mark.parametrize("parts", [((HALF,), (("x",),)), (("a",), ((HALF,),)), (("a",), (("x",),), {"by": HALF})])
def test_half_a_character_in_descriptions_is_refused(parts: tuple[Any, ...]) -> None:
    with pytest.raises(DescriptionError, match="cannot be encoded as UTF-8"):
        ClassDescriptions(*parts)


def test_half_a_character_in_a_file_is_refused(tmp_path: Path) -> None:
    record = {"format": "resilient_heads.descriptions/1", "provenance": {"by": HALF}, "classes": {"a": ["x"]}}
    with pytest.raises(DescriptionError, match="provenance was decoded wrongly"):
        load(record, tmp_path)


def test_half_a_character_in_a_class_name_of_embeddings_is_refused() -> None:
    with pytest.raises(EmbeddingError, match=r"class_names\[1\] .*cannot be encoded"):
        ClassEmbeddings(torch.eye(2), ("a", HALF))


@pytest.mark.parametrize("field", ["encoder", "encoder_revision", "descriptions_sha256", "pooling", "weights_sha256"])
def test_half_a_character_in_a_provenance_is_refused(field: str) -> None:
    with pytest.raises(EmbeddingError, match=f"provenance {field} .*cannot be encoded"):
        Provenance(**{field: HALF})  # type: ignore[arg-type]


@pytest.mark.shared_data
def test_published_description_files_load() -> None:
    folder = FOLDER / "descriptions"
    assert len(ClassDescriptions.load(folder / "CuPL__cifar10_prompts_full.json").class_names) == 10
    with pytest.raises(DescriptionError, match="5 of 101 classes have no description"):
        ClassDescriptions.load(folder / "WaffleCLIP__descriptors_food101.json")
    assert len(ClassDescriptions.load(folder / "WaffleCLIP__descriptors_imagenet.json").class_names) == 1000
