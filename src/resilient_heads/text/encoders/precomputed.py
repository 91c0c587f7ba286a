"""A text encoder that looks embeddings up in a table."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from resilient_heads.errors import EmbeddingError
from resilient_heads.text.encoders.batching import check_sentences


class PrecomputedEncoder:
    """Use sentence embeddings that were computed elsewhere. Needs no network and no model.

    Args:
        table: Sentence to its embedding ``(E,)``.
        id: Name of the encoder that computed the embeddings, for provenances.
        revision: Commit or digest of that encoder.

    Raises:
        EmbeddingError: The table is empty, or its values are not vectors of one length.

    Example:
        >>> import resilient_heads as rh, torch
        >>> encoder = rh.text.PrecomputedEncoder({"It purrs.": torch.tensor([1.0, 0.0])}, id="my-encoder")
        >>> encoder.encode(["It purrs."])
        tensor([[1., 0.]])
    """

    def __init__(self, table: Mapping[str, Tensor], *, id: str, revision: str = "") -> None:
        if not isinstance(table, Mapping) or not table:
            raise EmbeddingError(f'table must be a mapping such as {{"It purrs.": tensor}}, found {table!r:.60}.')
        shapes = {tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__ for value in table.values()}
        shape = shapes.pop()
        if shapes or not isinstance(shape, tuple) or len(shape) != 1:
            raise EmbeddingError(
                f"The values of table must be tensors of one shape (E,), found {', '.join(map(str, {shape, *shapes}))}."
            )
        self._table = {sentence: vector.detach().float().cpu() for sentence, vector in table.items()}
        self.id = id
        self.revision = revision
        self.context_length = 0
        self.embed_dim = int(shape[0])

    def encode(self, sentences: Sequence[str]) -> Tensor:
        """Return the embeddings of N sentences, ``(N, E)`` float32.

        Raises:
            EmbeddingError: A sentence is not in the table.
        """
        sentences = check_sentences(sentences)
        missing = [sentence for sentence in sentences if sentence not in self._table]
        if missing:
            raise EmbeddingError(
                f"The precomputed table lacks {len(missing)} of {len(sentences)} sentences, first {missing[0]!r:.80}."
            )
        return torch.stack([self._table[s] for s in sentences]) if sentences else torch.empty(0, self.embed_dim)
