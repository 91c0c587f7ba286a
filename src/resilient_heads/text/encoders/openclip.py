"""Text encoders of the open_clip library. Only the text tower of a model is loaded into memory."""

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from resilient_heads.errors import EmbeddingError
from resilient_heads.text.encoders.batching import BatchedEncoder
from resilient_heads.text.encoders.openclip_source import find_source
from resilient_heads.text.encoders.options import EncoderOptions
from resilient_heads.text.hub.settings import HubSettings

logger = logging.getLogger(__name__)

_NOT_TEXT = ("visual.", "text_decoder.", "logit_scale", "logit_bias")


class OpenClipEncoder(BatchedEncoder):
    """The text tower of an open_clip model.

    Args:
        model: ``"ARCHITECTURE/TAG"`` as open_clip lists them, such as ``"ViT-B-16/openai"``, ``"hf-hub:OWNER/NAME"``,
            or ``"local-dir:FOLDER"`` for a folder with ``open_clip_config.json`` and safetensors weights.
        revision: Commit on the Hub. None uses the pinned commit of ``ViT-B-16/openai`` and ``ViT-B-32/openai``, whose
            weights have a known sha256, and the newest commit of any other model, which :attr:`revision` then names.
            A folder has no revisions: its files pin it.
        options: Device, dtype, batch size and treatment of long sentences.
        hub: How to reach the Hub.

    Raises:
        EmbeddingError: open_clip does not know the model, or weights are missing. Weights are never random.
        HubError: The weights cannot be downloaded.

    Source: Cherti et al., *Reproducible scaling laws for contrastive language-image learning*, CVPR 2023.
    """

    def __init__(
        self,
        model: str = "ViT-B-16/openai",
        *,
        revision: str | None = None,
        options: EncoderOptions | None = None,
        hub: HubSettings | None = None,
    ) -> None:
        super().__init__(options)
        source = find_source(model, revision=revision, hub=HubSettings.from_options(hub))
        import open_clip  # takes seconds and hundreds of megabytes

        self.id, self.revision, self.weights_sha256 = source.id, source.revision, source.weights_sha256
        logger.info("Loading %s at %s, weights sha256 %s.", self.id, self.revision, self.weights_sha256)
        tower = _text_tower(open_clip, source.config, source.weights, model)
        self._tower = tower.to(device=self.options.device, dtype=self.options.dtype).eval().requires_grad_(False)
        self._tokenizer: Any = open_clip.get_tokenizer(source.tokenizer)
        self.context_length = int(self._tower.context_length)
        empty = self._tokens([""], self.context_length)[0]
        self._padding = int(empty[-1])
        self._end_equals_padding = int(empty.ne(self._padding).sum()) < 2
        self._can_trim = _ignores_padding(self._tower)
        self.embed_dim = int(self.run([""]).shape[1])

    def count_tokens(self, sentences: list[str]) -> list[int]:
        """Return the number of tokens of each sentence, counted up to two more than fit."""
        used = self._tokens(sentences, self.context_length + 2).ne(self._padding)
        # An end token that equals the padding cannot be seen. Counting it anyway may warn about a text that just fits.
        return [(int(row.nonzero()[-1]) + 1 if bool(row.any()) else 0) + self._end_equals_padding for row in used]

    @torch.inference_mode()
    def run(self, sentences: list[str]) -> Tensor:
        """Return the embeddings of one batch."""
        tokens = self._tokens(sentences, self.context_length)
        if self._can_trim:
            tokens = tokens[:, : int(tokens.ne(self._padding).any(dim=0).nonzero()[-1]) + 1]
        return self.encode_tokens(tokens)

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Return the embeddings of ``(n, L)`` tokens; equals ``encode_text`` of open_clip for the full context."""
        tokens = tokens.to(self.options.device)
        length = tokens.shape[1]
        if length == self.context_length:
            return self._tower.encode_text(tokens)  # type: ignore[no-any-return]
        # The causal mask hides everything behind the end of a text, so it need not be computed.
        x = self._tower.token_embedding(tokens).to(self._tower.transformer.get_cast_dtype())
        x = x + self._tower.positional_embedding[:length].to(x.dtype)
        x = self._tower.ln_final(self._tower.transformer(x, attn_mask=self._tower.attn_mask[:length, :length]))
        x = x[torch.arange(len(x), device=x.device), tokens.argmax(dim=-1)]
        return x @ self._tower.text_projection  # type: ignore[no-any-return]

    def _tokens(self, sentences: list[str], length: int) -> Tensor:
        tokens: Tensor = self._tokenizer(sentences, context_length=length)
        return tokens


def _text_tower(open_clip: Any, config: dict[str, Any], weights: Path, model: str) -> Any:
    """Build a model on the meta device, drop its image tower, and load the weights of the text tower, strictly."""
    arguments = dict(config)
    custom = arguments.pop("custom_text", False)
    if "multimodal_cfg" in arguments or "hf_model_name" in arguments["text_cfg"]:
        raise EmbeddingError(
            f"The text tower of {model!r} is not one of open_clip's own; use TransformersEncoder or "
            "SentenceTransformerEncoder."
        )
    try:
        with torch.device("meta"):
            tower = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**arguments)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise EmbeddingError(f"open_clip cannot build {model!r} from its config: {error}") from error
    tower.visual = None
    state = _text_weights(weights, {name for name in tower.state_dict() if not name.startswith(_NOT_TEXT)}, model)
    for name in ("logit_scale", "logit_bias"):
        setattr(tower, name, None)
    try:
        tower.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise EmbeddingError(f"{weights} does not fit {model!r}: {error}") from error
    text = tower.text if custom else tower
    if getattr(text, "attn_mask", None) is not None:
        # No state dict holds the causal mask, so loading leaves it without values.
        size = int(tower.context_length)
        text.attn_mask = torch.full((size, size), float("-inf")).triu_(1)
    empty = [name for name, tensor in (*tower.named_parameters(), *tower.named_buffers()) if tensor.is_meta]
    if empty:
        raise EmbeddingError(f"The text tower of {model!r} needs {', '.join(empty[:3])}, which no file holds.")
    return tower


def _text_weights(path: Path, wanted: set[str], model: str) -> dict[str, Tensor]:
    """Read the text tower's weights as float32; refuse missing and unexpected ones."""
    try:
        with safe_open(path, framework="pt") as file:
            present = {name for name in file.keys() if not name.startswith(_NOT_TEXT)}  # noqa: SIM118
            # Older files of custom text towers omit the prefix.
            prefix = "text." if "text_projection" in present - wanted else ""
            state = {prefix + name: file.get_tensor(name).float() for name in present if prefix + name in wanted}
    except (OSError, SafetensorError) as error:
        raise EmbeddingError(f"{path} is truncated, or is not a safetensors file: {error}.") from error
    missing, unexpected = wanted - set(state), {prefix + name for name in present} - wanted
    if missing or unexpected:
        raise EmbeddingError(
            f"{path} does not fit {model!r}: {len(missing)} weights are missing and {len(unexpected)} are unexpected, "
            f"such as {min(missing | unexpected)!r}."
        )
    return state


def _ignores_padding(tower: Any) -> bool:
    """Whether tokens behind the end of a text have no effect: a causal mask, and pooling at the end token."""
    return (
        getattr(tower, "attn_mask", None) is not None
        and getattr(tower, "text_pool_type", None) == "argmax"
        and isinstance(getattr(tower, "text_projection", None), Tensor)
    )
