"""A wrong argument raises an error of the library that says what was expected."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import resilient_heads as rh
from resilient_heads.errors import ArgumentError, DescriptionError, EmbeddingError, ModelError
from resilient_heads.text.descriptions.matching import match_report
from resilient_heads.text.embeddings import Provenance
from resilient_heads.text.hub.settings import HubSettings
from resilient_heads.text.prebuilt.publish import publish, write_folder

TABLE = rh.text.PrecomputedEncoder({"It barks.": torch.tensor([1.0, 0.0])}, id="table")


class Lists:
    id, revision, context_length, embed_dim = "lists", "", 0, 2

    def encode(self, sentences: list[str]) -> list[list[float]]:
        return [[1.0, 0.0] for _ in sentences]


def dog(vector: list[float]) -> rh.ClassEmbeddings:
    return rh.ClassEmbeddings(torch.tensor([vector]), ("dog",))


CASES: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "an integer dtype": (lambda to: dog([1.0, 2.0]).save(to, dtype=torch.int8), ArgumentError, "floating dtype"),
    "an overflow": (lambda to: dog([1e9, 2.0]).save(to, dtype=torch.float16), EmbeddingError, "overflows"),
    "a vanishing vector": (lambda to: dog([1e-30, 0.0]).save(to, dtype=torch.float16), EmbeddingError, "all zeros"),
    "a plain mapping": (lambda _: rh.embed_classes({"dog": ["x"]}, TABLE), EmbeddingError, "ClassDescriptions.match"),
    "nothing": (lambda _: rh.embed_classes(None, TABLE), EmbeddingError, "found NoneType"),
    "lists from an encoder": (
        lambda _: rh.embed_classes(rh.ClassDescriptions.match(["dog"], {"dog": ["It barks."]}), Lists()),
        EmbeddingError,
        "returned list",
    ),
    "lists in a table": (
        lambda _: rh.text.PrecomputedEncoder({"a": [1, 2]}, id="t"),
        EmbeddingError,
        "found list",
    ),
    "a list of names": (lambda _: rh.load_embeddings(["a"]), EmbeddingError, r"No embeddings are named \['a'\]; avail"),
    "no encoder's name": (
        lambda _: rh.load_embeddings("cifar10", encoder=None),
        EmbeddingError,
        "encoder must be a name such as 'clip-vit-b-16', found None",
    ),
    "no model": (
        lambda _: rh.text.OpenClipEncoder(None),
        EmbeddingError,
        "model must be a name such as .* found None",
    ),
    "a sparse tensor": (
        lambda _: rh.ClassEmbeddings(torch.eye(2).to_sparse(), ("cat", "dog")),
        EmbeddingError,
        r"dense .* tensor .* found torch.sparse_coo; pass vectors.to_dense\(\)",
    ),
    "no values": (
        lambda _: rh.ClassEmbeddings(torch.eye(2, device="meta"), ("cat", "dog")),
        EmbeddingError,
        "on the meta device",
    ),
    **{
        f"a path that is {given!r}": (call, error, "must be a path")
        for call, error, given in (
            (lambda _: rh.ClassEmbeddings.load(None), EmbeddingError, None),
            (lambda _: dog([1.0]).save(7), EmbeddingError, 7),
            (lambda _: rh.ClassDescriptions.load(["a"]), DescriptionError, ["a"]),
            (lambda _: rh.ClassEmbeddings.load("a\0b"), EmbeddingError, "a\0b"),
            (lambda _: rh.ClassDescriptions.load("half \ud800"), DescriptionError, "half \ud800"),
            (lambda _: rh.text.TransformersEncoder(3), EmbeddingError, 3),
            (lambda _: rh.text.SentenceTransformerEncoder(b"x"), EmbeddingError, b"x"),
            (lambda _: rh.TextGuidedHead.from_pretrained({}), ModelError, {}),
            (lambda _: publish(0.5, "owner/name"), EmbeddingError, 0.5),
            (lambda _: rh.generate_descriptions(["a"], str, answers=()), DescriptionError, ()),
        )
    },
    "no names": (lambda _: rh.ClassEmbeddings(torch.eye(2), None), EmbeddingError, "must be a sequence of strings"),
    "one name to select": (lambda _: dog([1.0]).select("dog"), EmbeddingError, "must be a sequence of strings"),
    "a number for a name": (lambda _: dog([1.0]).select([1]), EmbeddingError, "found .1."),
    "a number in the record": (lambda _: Provenance(encoder=1), EmbeddingError, "provenance encoder must be a str"),
    "settings that are an address": (
        lambda _: rh.load_embeddings("digits", hub="https://hub"),
        ArgumentError,
        r"hub must be a HubSettings, such as HubSettings\(endpoint=",
    ),
    "a secret of the wrong type": (lambda _: HubSettings(token=b"secret"), ArgumentError, "token .* of type bytes"),
    "a manifest that is a path": (
        lambda _: rh.load_embeddings("digits", manifest="m.json"),
        ArgumentError,
        "manifest must be a Manifest",
    ),
    "a revision that is a number": (
        lambda _: rh.load_embeddings("digits", revision=1),
        ArgumentError,
        "revision must",
    ),
    "an encoder that is a name": (
        lambda _: rh.embed_classes(rh.ClassDescriptions.match(["a"], {"a": ["b"]}), "minilm-l6"),
        EmbeddingError,
        "encoder must have id, revision",
    ),
    "a table that is a list": (
        lambda _: rh.text.PrecomputedEncoder(["a"], id="t"),
        EmbeddingError,
        "table must be a mapping",
    ),
    "text for a file's content": (lambda _: rh.ClassDescriptions.from_bytes("{}"), DescriptionError, "must be bytes"),
    "provenance that is text": (
        lambda _: rh.ClassDescriptions(("a",), (("b",),), "me"),
        DescriptionError,
        "provenance must map",
    ),
    "a report on nothing": (lambda _: match_report(["a"], None), DescriptionError, "must be a mapping such as"),
    "publishing in whole numbers": (
        lambda to: write_folder({"a": dog([1.0])}, to, dtype=torch.int8),
        ArgumentError,
        "floating dtype",
    ),
    "publishing a tensor": (lambda to: write_folder({"a": torch.eye(2)}, to), ArgumentError, "must be a ClassEmb"),
    "no templates": (
        lambda _: rh.ClassDescriptions.match(["dog"], {"dog": ["It barks."]}, templates=None),
        DescriptionError,
        "templates must be a sequence",
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_a_wrong_argument_is_refused_with_a_message(kind: str, tmp_path: Path) -> None:
    call, error, message = CASES[kind]
    with pytest.raises(error, match=message):
        call(tmp_path / "e.safetensors")
    assert not list(tmp_path.iterdir())
