"""The bundled descriptions: counts, lengths, repeated sentences, and sentences that name another class."""

import re
from collections.abc import Iterator

import pytest

from resilient_heads.errors import DescriptionError
from resilient_heads.text.prebuilt.bundled import load_bundled, load_descriptions

SIZES = {"cifar10": (10, 5), "cifar100": (100, 5), "stl10": (10, 5), "food101": (101, 5), "imagenet1k": (1000, 3)}
# WordNet's classes overlap: an ear is an ear of corn, so its sentences must name another class.
MEANT = {
    ("ballplayer", "baseball"),
    ("ear", "corn"),
    ("grille", "radiator"),
    ("panpipe", "flute"),
    ("projectile", "missile"),
    ("stinkhorn", "mushroom"),
    ("sunglass", "sunglasses"),
}
# An encoder responds to words and not to "no": "unlike a wolf" moves a class towards the wolf.
CONTRAST = re.compile(
    r"\b(unlike|rather|instead|no|not|nor|neither|never|none|without|lack\w*|nothing|missing|absent|absence|cousins?"
    r"|relatives?|compared|differs?|hardly|barely|virtually|than(?! (it|its|they|their|wide|long|tall|high|broad)\b)"
    r"|(distinguish\w*|separates?|tells?|apart)\b.*\bfrom)\b",
    re.IGNORECASE,
)
pytestmark = pytest.mark.parametrize("name", SIZES)


def sentences(name: str) -> Iterator[tuple[str, str]]:
    found = load_descriptions(name)
    for described, texts in zip(found.class_names, found.sentences, strict=True):
        for text in texts:
            yield described, text


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z]+", text.lower()))


def test_every_class_has_enough_sentences_of_a_usual_length(name: str) -> None:
    classes, least = SIZES[name]
    found = load_descriptions(name)
    assert len(found.class_names) == len(set(found.class_names)) == classes
    assert min(map(len, found.sentences)) >= least
    for described, text in sentences(name):
        assert text.isascii(), text
        assert 7 <= len(text.split()) <= 24, (described, text)
        assert text[0].isupper(), text
        assert text[-1] == ".", text


def test_no_description_says_what_a_class_is_not(name: str) -> None:
    assert [text for _, text in sentences(name) if CONTRAST.search(text)] == []


def test_no_sentence_repeats_or_resembles_another(name: str) -> None:
    texts = [text for _, text in sentences(name)]
    assert len(set(texts)) == len(texts)
    bags = sorted(
        ((words(text), described, text) for described, text in sentences(name)), key=lambda item: sorted(item[0])
    )
    by_word: dict[str, list[int]] = {}
    for row, (bag, _, text) in enumerate(bags):
        rare = sorted(bag, key=lambda word: (len(by_word.get(word, ())), word))[: len(bag) // 2 + 1]
        for other in {row for word in rare for row in by_word.get(word, ())}:
            shared = len(bag & bags[other][0]) / len(bag | bags[other][0])
            assert shared < 0.75, (text, bags[other][2])
        for word in bag:
            by_word.setdefault(word, []).append(row)


def test_no_class_names_another(name: str) -> None:
    names = sorted(load_descriptions(name).class_names, key=len, reverse=True)
    pattern = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, names))})(?![\w-])")
    slips = {
        (described, other)
        for described, text in sentences(name)
        for other in pattern.findall(text)
        if other not in described  # a hammerhead shark may be called a shark
    }
    assert slips == (MEANT if name == "imagenet1k" else set())


def test_embeddings_were_made_from_these_descriptions(name: str) -> None:
    embeddings = load_bundled(name)
    descriptions = load_descriptions(name)
    assert embeddings.class_names == descriptions.class_names
    assert embeddings.provenance.descriptions_sha256 == descriptions.sha256
    assert embeddings.provenance.encoder == "all-MiniLM-L6-v2"


def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(DescriptionError, match="available"):
        load_descriptions(name + "?")
