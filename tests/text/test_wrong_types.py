"""What is no argument at all gets one of our errors."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import resilient_heads as rh
from resilient_heads.errors import DescriptionError, EmbeddingError

TABLE = rh.PrecomputedEncoder({"It barks.": torch.tensor([1.0, 0.0])}, id="table")


class Lists:
    id, revision, context_length, embed_dim = "lists", "", 0, 2

    def encode(self, sentences: list[str]) -> list[list[float]]:
        return [[1.0, 0.0] for _ in sentences]


def dog(vector: list[float]) -> rh.ClassEmbeddings:
    return rh.ClassEmbeddings(torch.tensor([vector]), ("dog",))


CASES: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "an integer dtype": (lambda to: dog([1.0, 2.0]).save(to, dtype=torch.int8), EmbeddingError, "floating dtype"),
    "an overflow": (lambda to: dog([1e9, 2.0]).save(to, dtype=torch.float16), EmbeddingError, "overflows"),
    "a vanishing vector": (lambda to: dog([1e-30, 0.0]).save(to, dtype=torch.float16), EmbeddingError, "all zeros"),
    "a plain mapping": (lambda _: rh.embed_classes({"dog": ["x"]}, TABLE), EmbeddingError, "ClassDescriptions.match"),
    "nothing": (lambda _: rh.embed_classes(None, TABLE), EmbeddingError, "found NoneType"),
    "lists from an encoder": (
        lambda _: rh.embed_classes(rh.ClassDescriptions.match(["dog"], {"dog": ["It barks."]}), Lists()),
        EmbeddingError,
        "gave a list",
    ),
    "lists in a table": (lambda _: rh.PrecomputedEncoder({"a": [1, 2]}, id="t"), EmbeddingError, "found a list"),
    "a list of names": (lambda _: rh.load_embeddings(["a"]), EmbeddingError, r"No embeddings are named \['a'\]; avail"),
    "no encoder's name": (
        lambda _: rh.load_embeddings("cifar10", encoder=None),
        EmbeddingError,
        "named by a string, such as 'clip-vit-b-16', found None",
    ),
    "no model": (
        lambda _: rh.OpenClipEncoder(None),
        EmbeddingError,
        "open_clip model is named by a string, .* found None",
    ),
    "a sparse tensor": (
        lambda _: rh.ClassEmbeddings(torch.eye(2).to_sparse(), ("cat", "dog")),
        EmbeddingError,
        r"dense tensor, found torch.sparse_coo; pass vectors.to_dense\(\)",
    ),
    "no values": (
        lambda _: rh.ClassEmbeddings(torch.eye(2, device="meta"), ("cat", "dog")),
        EmbeddingError,
        "on the meta device",
    ),
    "no templates": (
        lambda _: rh.ClassDescriptions.match(["dog"], {"dog": ["It barks."]}, templates=None),
        DescriptionError,
        "templates must be a sequence",
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_wrong_types(kind: str, tmp_path: Path) -> None:
    call, error, message = CASES[kind]
    with pytest.raises(error, match=message):
        call(tmp_path / "e.safetensors")
    assert not list(tmp_path.iterdir())
