"""Encoders by short name."""

import torch

from resilient_heads.errors import EmbeddingError
from resilient_heads.text.embeddings import Provenance
from resilient_heads.text.encoders.batching import LongText
from resilient_heads.text.encoders.openclip import OpenClipEncoder
from resilient_heads.text.encoders.openclip_source import planned_source
from resilient_heads.text.encoders.pins import MINILM_SHA256
from resilient_heads.text.encoders.protocol import TextEncoder
from resilient_heads.text.encoders.sentence import SentenceTransformerEncoder
from resilient_heads.text.hub.settings import HubSettings

MINILM = "all-MiniLM-L6-v2"
SHORT_NAMES = {"minilm-l6": MINILM, "clip-vit-b-16": "ViT-B-16/openai", "clip-vit-b-32": "ViT-B-32/openai"}


def encoder_id(name: str) -> str:
    """Return the full name of an encoder; provenance records it, but of a folder only its last part.

    Args:
        name: A short name, or what :func:`named_encoder` takes.

    Raises:
        EmbeddingError: No encoder can have that name.

    >>> encoder_id("clip-vit-b-16")
    'ViT-B-16/openai'
    """
    if not isinstance(name, str):
        raise EmbeddingError(f"An encoder is named by a string, such as {min(SHORT_NAMES)!r}, found {name!r:.60}.")
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
    long_text: LongText = "warn",
    progress: bool = False,
    offline: bool = False,
    hub: HubSettings | None = None,
) -> TextEncoder:
    """Load an encoder by name.

    Args:
        name: ``"minilm-l6"``, ``"clip-vit-b-16"``, ``"clip-vit-b-32"``, open_clip's ``"ARCHITECTURE/TAG"``,
            ``"hf-hub:OWNER/NAME"`` or ``"local-dir:FOLDER"``.
        revision: Commit of open_clip weights on the Hub; None takes the pinned one, or else the newest.
        device: Where to run it.
        long_text: ``"warn"``, ``"chunk"`` or ``"error"``; see
            :class:`~resilient_heads.text.encoders.batching.Batching`.
        progress: Show a progress bar on stderr.
        offline: Never touch the network.
        hub: How the Hub is reached, where the usual settings do not fit.

    Raises:
        EmbeddingError: No encoder has that name, its weights are not whole or not the known ones, or ``revision`` was
            given for one that is on this machine already.
        HubError: Its weights cannot be had.
        MissingExtraError: The package that runs it is not installed.
    """
    known = encoder_id(name)
    if known == MINILM:
        _refuse_revision(revision)
        return SentenceTransformerEncoder.minilm(device=device, long_text=long_text, progress=progress)
    return OpenClipEncoder(
        known, revision=revision, device=device, long_text=long_text, progress=progress, offline=offline, hub=hub
    )


def planned_identity(name: str, *, revision: str | None, hub: HubSettings) -> tuple[str, str]:
    """Return the id and the revision that :func:`named_encoder`'s encoder would have, without loading it.

    Returns:
        The revision is empty where only the Hub knows it and cannot be asked.

    Raises:
        EmbeddingError: As :func:`named_encoder`.
        HubError: The Hub has no such revision.
    """
    known = encoder_id(name)
    if known == MINILM:
        _refuse_revision(revision)
        return MINILM, f"sha256:{MINILM_SHA256}"
    return planned_source(known, revision=revision, hub=hub)


def encoder_of(provenance: Provenance, *, offline: bool = False, hub: HubSettings | None = None) -> TextEncoder:
    """Load the encoder that made some embeddings, at the same revision.

    Args:
        provenance: What the embeddings record.
        offline: Never touch the network.
        hub: How the Hub is reached, where the usual settings do not fit.

    Raises:
        EmbeddingError: The record names no encoder that can be loaded by name, or only another revision can be had.
        HubError: Its weights cannot be had.
        MissingExtraError: The package that runs it is not installed.
    """
    advice = "embed the sentences with it yourself: embed_classes(descriptions, encoder)."
    if provenance.encoder.startswith("local-dir:") or (
        provenance.encoder != MINILM and "/" not in provenance.encoder.removeprefix("hf-hub:")
    ):
        raise EmbeddingError(
            f"These embeddings were made with {provenance.encoder!r}, which no name leads back to; {advice}"
        )
    recorded = provenance.encoder_revision
    revision = None if not recorded or recorded.startswith("sha256:") else recorded
    encoder = named_encoder(provenance.encoder, revision=revision, offline=offline, hub=hub)
    if recorded and encoder.revision != recorded:
        raise EmbeddingError(
            f"These embeddings were made with {provenance.encoder} at {recorded}, and {encoder.revision} is what can "
            f"be had here; {advice}"
        )
    return encoder


def _refuse_revision(revision: str | None) -> None:
    """Raise where a commit is asked of MiniLM."""
    if revision is not None:
        raise EmbeddingError(
            f"MiniLM comes from an installed package and is pinned by its sha256, {MINILM_SHA256[:12]}..., so there "
            f"is no revision to choose; leave {revision!r} out."
        )
