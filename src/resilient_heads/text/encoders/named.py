"""Encoders by short name."""

import torch

from resilient_heads.errors import EmbeddingError
from resilient_heads.text.encoders.openclip import OpenClipEncoder
from resilient_heads.text.encoders.protocol import TextEncoder
from resilient_heads.text.encoders.sentence import SentenceTransformerEncoder

MINILM = "all-MiniLM-L6-v2"
SHORT_NAMES = {"minilm-l6": MINILM, "clip-vit-b-16": "ViT-B-16/openai", "clip-vit-b-32": "ViT-B-32/openai"}


def encoder_id(name: str) -> str:
    """Return the id under which provenance records an encoder.

    Args:
        name: A short name, or what :func:`named_encoder` takes.

    Raises:
        EmbeddingError: No encoder can have that name.

    >>> encoder_id("clip-vit-b-16")
    'ViT-B-16/openai'
    """
    known = SHORT_NAMES.get(name.lower(), name)
    if known != MINILM and "/" not in known and not known.startswith("local-dir:"):
        raise EmbeddingError(
            f"No encoder is named {name!r}; expected {', '.join(SHORT_NAMES)}, or open_clip's ARCHITECTURE/TAG."
        )
    return known


def named_encoder(
    name: str,
    *,
    revision: str | None = None,
    device: torch.device | str = "cpu",
    progress: bool = False,
    offline: bool = False,
) -> TextEncoder:
    """Load an encoder by name.

    Args:
        name: ``"minilm-l6"``, ``"clip-vit-b-16"``, ``"clip-vit-b-32"``, open_clip's ``"ARCHITECTURE/TAG"``,
            ``"hf-hub:OWNER/NAME"`` or ``"local-dir:FOLDER"``.
        revision: Commit of open_clip weights on the Hub.
        device: Where to run it.
        progress: Show a progress bar on stderr.
        offline: Never touch the network.

    Raises:
        EmbeddingError: No encoder has that name, or its weights are not whole.
        HubError: Its weights cannot be had.
        MissingExtraError: The package that runs it is not installed.
    """
    known = encoder_id(name)
    if known == MINILM:
        return SentenceTransformerEncoder.minilm(device=device, progress=progress)
    return OpenClipEncoder(known, revision=revision, device=device, progress=progress, offline=offline)
