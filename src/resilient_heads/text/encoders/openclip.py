"""open_clip models, of which only the text tower is ever in memory."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from resilient_heads.errors import EmbeddingError
from resilient_heads.evaluation import usable_device
from resilient_heads.text.encoders.batching import (
    Batching,
    LongText,
    encode_in_batches,
    usable_dtype,
)
from resilient_heads.text.encoders.openclip_source import find_source
from resilient_heads.text.hub.settings import HubSettings

logger = logging.getLogger(__name__)

_NOT_TEXT = ("visual.", "text_decoder.", "logit_scale", "logit_bias")


class OpenClipEncoder:
    """The text tower of an open_clip model.

    Args:
        model: ``"ARCHITECTURE/TAG"`` as open_clip lists them, such as ``"ViT-B-16/openai"``, or
            ``"hf-hub:OWNER/NAME"``, or ``"local-dir:FOLDER"`` with ``open_clip_config.json`` and safetensors weights.
        revision: Commit on the Hub. None takes the commit that this library pins for ``ViT-B-16/openai`` and
            ``ViT-B-32/openai``, weights checked against their known sha256; of any other model it takes the newest,
            and :attr:`revision` and the log then say which that was. A folder is pinned by its files.
        device: Where to run it.
        dtype: Dtype of its weights; embeddings come back as float32 all the same.
        batch_size: Sentences encoded at once.
        long_text: ``"warn"``, ``"chunk"`` or ``"error"``; see
            :class:`~resilient_heads.text.encoders.batching.Batching`.
        progress: Show a progress bar on stderr.
        offline: Never touch the network.
        hub: How the Hub is reached, where the usual settings do not fit.

    Raises:
        EmbeddingError: open_clip does not know the model, or its weights are not whole. Weights are never random.
        HubError: The weights cannot be had from the Hub.

    Source: Cherti et al., *Reproducible scaling laws for contrastive language-image learning*, CVPR 2023.
    """

    def __init__(
        self,
        model: str = "ViT-B-16/openai",
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
        self._device, dtype = usable_device(device), usable_dtype(dtype)
        source = find_source(model, revision=revision, hub=HubSettings.from_options(hub, offline=offline))
        import open_clip  # costs seconds and hundreds of megabytes, so only now

        self.id, self.revision, self.weights_sha256 = source.id, source.revision, source.weights_sha256
        tower = _text_tower(open_clip, source.config, source.weights, model)
        self._tower = tower.to(device=self._device, dtype=dtype).eval().requires_grad_(False)
        self._tokenizer: Any = open_clip.get_tokenizer(source.tokenizer)
        logger.info("%s at %s, weights sha256 %s.", self.id, self.revision, self.weights_sha256)
        self.context_length = int(self._tower.context_length)
        empty = self._tokens([""], self.context_length)[0]
        self._padding = int(empty[-1])
        self._unseen_end = int(int(empty.ne(self._padding).sum()) < 2)
        self._trims = _ignores_padding(self._tower)
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
        """Count tokens; with room for two more than fit, a sentence that would be cut shows."""
        tokens = self._tokens(sentences, self.context_length + 2)
        used = tokens.ne(self._padding)
        # Where the end token is also the padding, it is not seen: then it is added, at the cost of crying wolf over a
        # text that just fits.
        return [(int(row.nonzero()[-1]) + 1 if bool(row.any()) else 0) + self._unseen_end for row in used]

    @torch.inference_mode()
    def _run(self, sentences: list[str]) -> Tensor:
        tokens = self._tokens(sentences, self.context_length)
        if not self._trims:
            return self._encode_tokens(tokens)
        used = int(tokens.ne(self._padding).any(dim=0).nonzero()[-1]) + 1
        return self._encode_tokens(tokens[:, :used])

    def _encode_tokens(self, tokens: Tensor) -> Tensor:
        """Run the tower on ``(n, L)`` tokens, ``L`` up to the context length; equals open_clip's ``encode_text``."""
        tokens = tokens.to(self._device)
        length = tokens.shape[1]
        if length == self.context_length:
            return self._tower.encode_text(tokens)  # type: ignore[no-any-return]
        # What follows the end of a text cannot reach it through the causal mask, so it need not be computed.
        whole = self._tower.positional_embedding, self._tower.attn_mask
        x = self._tower.token_embedding(tokens).to(self._tower.transformer.get_cast_dtype())
        x = x + whole[0][:length].to(x.dtype)
        x = self._tower.ln_final(self._tower.transformer(x, attn_mask=whole[1][:length, :length]))
        x = x[torch.arange(len(x), device=x.device), tokens.argmax(dim=-1)]
        return x @ self._tower.text_projection  # type: ignore[no-any-return]

    def _tokens(self, sentences: list[str], length: int) -> Tensor:
        tokens: Tensor = self._tokenizer(sentences, context_length=length)
        return tokens


def _text_tower(open_clip: Any, config: dict[str, Any], weights: Path, model: str) -> Any:
    """Build a model without memory, drop its other towers, and load what remains, strictly."""
    arguments = dict(config)
    text = arguments["text_cfg"]
    custom = arguments.pop("custom_text", False)
    if "multimodal_cfg" in arguments or "hf_model_name" in text:
        raise EmbeddingError(
            f"{model!r} has no text tower of open_clip's own; take TransformersEncoder or SentenceTransformerEncoder."
        )
    try:
        with torch.device("meta"):
            tower = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**arguments)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise EmbeddingError(f"open_clip cannot build {model!r} from its config: {error}") from error
    tower.visual = None
    wanted = {name for name in tower.state_dict() if not name.startswith(_NOT_TEXT)}
    try:
        with safe_open(weights, framework="pt") as file:
            present = {name for name in file.keys() if not name.startswith(_NOT_TEXT)}  # noqa: SIM118
            prefix = "text." if custom and "text_projection" in present else ""  # how older files name them
            state = {prefix + name: file.get_tensor(name) for name in present if prefix + name in wanted}
    except (OSError, SafetensorError) as error:
        raise EmbeddingError(f"{weights} is no whole safetensors file: {error}.") from error
    spare = {prefix + name for name in present} - wanted
    if missing := (wanted - set(state)) | spare:
        raise EmbeddingError(
            f"{weights} does not fit {model!r}: {len(wanted - set(state))} weights are missing and {len(spare)} are "
            f"spare, such as {min(missing)!r}."
        )
    for name in ("logit_scale", "logit_bias"):
        setattr(tower, name, None)
    try:
        tower.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    except RuntimeError as error:
        raise EmbeddingError(f"{weights} does not fit {model!r}: {error}") from error
    holder = tower.text if custom else tower
    if getattr(holder, "attn_mask", None) is not None:
        # The causal mask is in no state dict, so assigning leaves it without values.
        size = int(tower.context_length)
        holder.attn_mask = torch.full((size, size), float("-inf")).triu_(1)
    left = [name for name, tensor in (*tower.named_parameters(), *tower.named_buffers()) if tensor.is_meta]
    if left:
        raise EmbeddingError(f"{model!r} keeps {', '.join(left[:3])} in no file, so its text tower cannot be loaded.")
    return tower


def _ignores_padding(tower: Any) -> bool:
    """Whether nothing after a text's end changes its embedding: a causal mask, and pooling at the end token."""
    return (
        getattr(tower, "attn_mask", None) is not None
        and getattr(tower, "text_pool_type", None) == "argmax"
        and isinstance(getattr(tower, "text_projection", None), Tensor)
    )
