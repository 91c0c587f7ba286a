"""Text encoders of the transformers library."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resilient_heads.errors import EmbeddingError
from resilient_heads.extras import require
from resilient_heads.files import as_path, file_sha256
from resilient_heads.text.encoders.batching import BatchedEncoder
from resilient_heads.text.encoders.options import EncoderOptions
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


class TransformersEncoder(BatchedEncoder):
    """A text tower of transformers: of CLIP, MetaCLIP 2, SigLIP or SigLIP 2.

    Args:
        source: Folder of the model, or its repository on the Hub.
        revision: Commit on the Hub; None uses the newest, which :attr:`revision` then names. A folder has no
            revisions: the sha256 of its weights pins it.
        options: Device, dtype, batch size and treatment of long sentences.
        hub: How to reach the Hub.

    Raises:
        EmbeddingError: The model is of another kind, or weights are missing.
        HubError: The model cannot be downloaded.
        MissingExtraError: transformers is not installed.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        revision: str | None = None,
        options: EncoderOptions | None = None,
        hub: HubSettings | None = None,
    ) -> None:
        super().__init__(options)
        folder = as_path(source, "source", error=EmbeddingError)
        package: Any = require("transformers", extra="hf", purpose="TransformersEncoder")
        is_local = folder.is_dir()
        if is_local and revision is not None:
            raise EmbeddingError(f"{source} is a folder, which its weights pin; omit revision={revision!r}.")
        if not is_local:
            settings = HubSettings.from_options(hub)
            folder = fetch_snapshot(str(source), _FILES, any_of=(_WEIGHTS,), revision=revision, settings=settings)
        weights = folder / _WEIGHTS
        if not weights.is_file():
            raise EmbeddingError(f"{source} has no {_WEIGHTS}; this library does not read pickled weights.")
        self.weights_sha256 = file_sha256(weights)
        self.id = folder.resolve().name if is_local else str(source)
        self.revision = f"sha256:{self.weights_sha256}" if is_local else folder.name
        logger.info("Loading %s at %s, weights sha256 %s.", self.id, self.revision, self.weights_sha256)
        model, self._tokenizer, kind = _load(package, folder, source)
        self._model = model.to(device=self.options.device, dtype=self.options.dtype).eval()
        # SigLIP was trained with padding to the full context and attends to it (open_clip#984), so it gets no mask,
        # even if its tokenizer offers one. CLIP's causal mask hides padding.
        is_siglip = kind.startswith("siglip")
        self._padding = "max_length" if is_siglip else "longest"
        self._inputs = ("input_ids",) if is_siglip else ("input_ids", "attention_mask")
        self.context_length = int(model.config.max_position_embeddings)
        self.embed_dim = int(self.run([""]).shape[1])

    def count_tokens(self, sentences: list[str]) -> list[int]:
        """Return the number of tokens of each sentence."""
        return [len(ids) for ids in self._tokenizer(sentences, truncation=False, verbose=False)["input_ids"]]

    @torch.inference_mode()
    def run(self, sentences: list[str]) -> Tensor:
        """Return the embeddings of one batch."""
        tokens = self._tokenizer(
            sentences, truncation=True, max_length=self.context_length, padding=self._padding, return_tensors="pt"
        ).to(self.options.device)
        output = self._model(**{name: tokens[name] for name in self._inputs if name in tokens})
        vectors = getattr(output, "text_embeds", None)
        return vectors if isinstance(vectors, Tensor) else torch.as_tensor(output.pooler_output)


def _load(package: Any, folder: Path, source: str | Path) -> tuple[Any, Any, str]:
    """Return the text tower, its tokenizer and the model's type; refuse a model that lacks weights."""
    try:
        kind = str(package.AutoConfig.from_pretrained(folder).model_type)
        if kind not in _TOWERS:
            raise EmbeddingError(
                f"{source} is a {kind!r} model; expected one of {', '.join(_TOWERS)}. For a sentence model, use "
                "SentenceTransformerEncoder."
            )
        tower = getattr(package, _TOWERS[kind])
        model, report = tower.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
        tokenizer = package.AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, EmbeddingError):
            raise
        raise EmbeddingError(f"{source} could not be loaded: {error}") from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise EmbeddingError(f"{source} lacks the weights {missing}, which transformers would fill at random.")
    return model, tokenizer, kind
