"""Text towers of the transformers library."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resilient_heads.errors import EmbeddingError
from resilient_heads.extras import require
from resilient_heads.files import file_sha256
from resilient_heads.text.encoders.batching import Batching, LongText, encode_in_batches
from resilient_heads.text.hub import fetch_snapshot

_FILES = ("config.json", "model.safetensors", "*token*.json", "vocab.*", "merges.txt", "*.model")
_TOWERS = {
    "clip": "CLIPTextModelWithProjection",
    "clip_text_model": "CLIPTextModelWithProjection",
    "siglip": "SiglipTextModel",
    "siglip_text_model": "SiglipTextModel",
}


class TransformersEncoder:
    """A CLIP or SigLIP text tower of transformers: ``CLIPTextModelWithProjection`` or ``SiglipTextModel``.

    Args:
        source: Folder of the model, or its repository on the Hub.
        revision: Commit on the Hub; None takes the newest, and :attr:`revision` then says which that was.
        device: Where to run it.
        dtype: Dtype of its weights; embeddings come back as float32 all the same.
        batch_size: Sentences encoded at once.
        long_text: ``"warn"``, ``"chunk"`` or ``"error"``; see
            :class:`~resilient_heads.text.encoders.batching.Batching`.
        progress: Show a progress bar on stderr.
        offline: Never touch the network.

    Raises:
        EmbeddingError: The model is of another kind, or its weights cannot be had whole.
        MissingExtraError: transformers is not installed.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        revision: str | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 64,
        long_text: LongText = "warn",
        progress: bool = False,
        offline: bool = False,
    ) -> None:
        self._batching = Batching(batch_size=batch_size, long_text=long_text, progress=progress)
        package: Any = require("transformers", extra="hf", purpose="TransformersEncoder")
        folder = Path(source)
        if folder.is_dir():
            self.id, self.revision = folder.name, ""
        else:
            folder = fetch_snapshot(str(source), _FILES, revision=revision, offline=offline)
            self.id, self.revision = str(source), folder.name
        weights = folder / "model.safetensors"
        if not weights.is_file():
            raise EmbeddingError(f"{source} has no model.safetensors; pickled weights are not read.")
        self.revision = self.revision or "sha256:" + file_sha256(weights)
        try:
            config = package.AutoConfig.from_pretrained(folder)
            if config.model_type not in _TOWERS:
                raise EmbeddingError(
                    f"{source} is a {config.model_type!r} model; expected one of {', '.join(_TOWERS)}. "
                    "Sentence models go through SentenceTransformerEncoder."
                )
            tower = getattr(package, _TOWERS[config.model_type])
            model, report = tower.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
            self._tokenizer: Any = package.AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError, RuntimeError) as error:
            if isinstance(error, EmbeddingError):
                raise
            raise EmbeddingError(f"{source} could not be loaded: {error}") from error
        if report["missing_keys"]:
            raise EmbeddingError(
                f"{source} lacks the weights {', '.join(sorted(report['missing_keys'])[:3])}; they would be random."
            )
        text_config = model.config
        self._model = model.to(device=device, dtype=dtype).eval()
        self._device = torch.device(device)
        # SigLIP was trained on padding to the full context and attends to it; CLIP's causal mask never sees it.
        self._padding = "max_length" if config.model_type.startswith("siglip") else "longest"
        self.context_length = int(text_config.max_position_embeddings)
        self.embed_dim = int(self._run([""]).shape[1])

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
        return [len(ids) for ids in self._tokenizer(sentences, truncation=False, verbose=False)["input_ids"]]

    @torch.inference_mode()
    def _run(self, sentences: list[str]) -> Tensor:
        tokens = self._tokenizer(
            sentences, truncation=True, max_length=self.context_length, padding=self._padding, return_tensors="pt"
        ).to(self._device)
        given = {name: tokens[name] for name in ("input_ids", "attention_mask") if name in tokens}
        output = self._model(**given)
        found = getattr(output, "text_embeds", None)
        return found if isinstance(found, Tensor) else torch.as_tensor(output.pooler_output)
