"""Text towers of the transformers library."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resilient_heads.errors import EmbeddingError
from resilient_heads.evaluation import usable_device
from resilient_heads.extras import require
from resilient_heads.files import as_path, file_sha256
from resilient_heads.text.encoders.batching import (
    Batching,
    LongText,
    encode_in_batches,
    usable_dtype,
)
from resilient_heads.text.hub.settings import HubSettings
from resilient_heads.text.hub.snapshots import fetch_snapshot

logger = logging.getLogger(__name__)

_WEIGHTS = "model.safetensors"
_FILES = ("config.json", "*token*.json", "vocab.*", "merges.txt", "*.model")
_TOWERS = {
    "clip": "CLIPTextModelWithProjection",
    "clip_text_model": "CLIPTextModelWithProjection",
    "metaclip_2": "MetaClip2TextModelWithProjection",
    "metaclip_2_text_model": "MetaClip2TextModelWithProjection",
    "siglip": "SiglipTextModel",
    "siglip_text_model": "SiglipTextModel",
    "siglip2": "Siglip2TextModel",
    "siglip2_text_model": "Siglip2TextModel",
}


class TransformersEncoder:
    """A text tower of transformers: ``CLIPTextModelWithProjection``, or that of MetaCLIP 2, SigLIP or SigLIP 2.

    Args:
        source: Folder of the model, or its repository on the Hub.
        revision: Commit on the Hub; None takes the newest, and :attr:`revision` then says which that was. A folder is
            pinned by the sha256 of its weights and takes none.
        device: Where to run it.
        dtype: Dtype of its weights; embeddings come back as float32 all the same.
        batch_size: Sentences encoded at once.
        long_text: ``"warn"``, ``"chunk"`` or ``"error"``; see
            :class:`~resilient_heads.text.encoders.batching.Batching`.
        progress: Show a progress bar on stderr.
        offline: Never touch the network.
        hub: How the Hub is reached, where the usual settings do not fit.

    Raises:
        EmbeddingError: The model is of another kind, or its weights are not whole.
        HubError: The model cannot be had from the Hub.
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
        hub: HubSettings | None = None,
    ) -> None:
        self._batching = Batching(batch_size=batch_size, long_text=long_text, progress=progress)
        folder = as_path(source, "source", error=EmbeddingError)
        package: Any = require("transformers", extra="hf", purpose="TransformersEncoder")
        self._device, dtype = usable_device(device), usable_dtype(dtype)
        local = folder.is_dir()
        if local and revision is not None:
            raise EmbeddingError(f"{source} is a folder, which its weights pin; leave revision={revision!r} out.")
        if not local:
            settings = HubSettings.from_options(hub, offline=offline)
            folder = fetch_snapshot(str(source), _FILES, any_of=(_WEIGHTS,), revision=revision, settings=settings)
        weights = folder / _WEIGHTS
        if not weights.is_file():
            raise EmbeddingError(f"{source} has no {_WEIGHTS}; pickled weights are not read.")
        self.weights_sha256 = file_sha256(weights)
        self.id = folder.resolve().name if local else str(source)
        self.revision = f"sha256:{self.weights_sha256}" if local else folder.name
        logger.info("%s at %s, weights sha256 %s.", self.id, self.revision, self.weights_sha256)
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
        self._model = model.to(device=self._device, dtype=dtype).eval()
        # SigLIP was trained on padding to the full context and attends to it (open_clip#984), so it gets no mask,
        # whatever its tokenizer offers; CLIP's causal mask never sees padding.
        siglip = config.model_type.startswith("siglip")
        self._padding = "max_length" if siglip else "longest"
        self._inputs = ("input_ids",) if siglip else ("input_ids", "attention_mask")
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
        given = {name: tokens[name] for name in self._inputs if name in tokens}
        output = self._model(**given)
        found = getattr(output, "text_embeds", None)
        return found if isinstance(found, Tensor) else torch.as_tensor(output.pooler_output)
