"""Embeddings that were computed elsewhere, as an encoder."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from resilient_heads.errors import EmbeddingError
from resilient_heads.text.encoders.batching import check_sentences


class PrecomputedEncoder:
    """A table of sentences whose embeddings were computed elsewhere.

    Args:
        table: Sentence to vector ``(E,)``.
        id: Name under which provenance records it.
        revision: What pins the encoder that filled the table.

    Raises:
        EmbeddingError: The table is empty or its vectors differ in length.
    """

    def __init__(self, table: Mapping[str, Tensor], *, id: str, revision: str = "") -> None:
        if not isinstance(table, Mapping):
            raise EmbeddingError(f"A table maps sentences to vectors, {{sentence: tensor}}; found {table!r:.60}.")
        if not table:
            raise EmbeddingError("The table of precomputed embeddings is empty.")
        odd = next((vector for vector in table.values() if not isinstance(vector, Tensor)), None)
        if odd is not None:
            raise EmbeddingError(f"Precomputed embeddings must be tensors, found a {type(odd).__name__}.")
        shapes = {tuple(vector.shape) for vector in table.values()}
        if len(shapes) != 1 or len(next(iter(shapes))) != 1:
            raise EmbeddingError(f"All precomputed embeddings must be vectors of one length, found {shapes}.")
        self._table = {sentence: vector.detach().float().cpu() for sentence, vector in table.items()}
        self.id = id
        self.revision = revision
        self.context_length = 0
        self.embed_dim = next(iter(shapes))[0]

    def encode(self, sentences: Sequence[str]) -> Tensor:
        """Look sentences up, ``(N, E)`` float32; a sentence that is not in the table raises EmbeddingError."""
        check_sentences(sentences)
        missing = [sentence for sentence in sentences if sentence not in self._table]
        if missing:
            raise EmbeddingError(
                f"The precomputed table lacks {len(missing)} of {len(sentences)} sentences, first {missing[0]!r:.80}."
            )
        return torch.stack([self._table[s] for s in sentences]) if sentences else torch.empty(0, self.embed_dim)
