"""Text encoders by name."""

from resilient_heads.errors import EmbeddingError
from resilient_heads.text.embeddings import Provenance
from resilient_heads.text.encoders.openclip import OpenClipEncoder
from resilient_heads.text.encoders.openclip_source import planned_source
from resilient_heads.text.encoders.options import EncoderOptions
from resilient_heads.text.encoders.pins import MINILM, MINILM_SHA256
from resilient_heads.text.encoders.protocol import TextEncoder
from resilient_heads.text.encoders.sentence import SentenceTransformerEncoder
from resilient_heads.text.hub.settings import HubSettings

SHORT_NAMES = {"minilm-l6": MINILM, "clip-vit-b-16": "ViT-B-16/openai", "clip-vit-b-32": "ViT-B-32/openai"}


def encoder_id(name: str) -> str:
    """Return the full name of an encoder; raise EmbeddingError if no encoder can have that name.

    >>> encoder_id("clip-vit-b-16")
    'ViT-B-16/openai'
    """
    if not isinstance(name, str):
        raise EmbeddingError(f"encoder must be a name such as {min(SHORT_NAMES)!r}, found {name!r:.60}.")
    full_name = SHORT_NAMES.get(name.lower(), name)
    if full_name != MINILM and "/" not in full_name and not full_name.startswith("local-dir:"):
        raise EmbeddingError(
            f"No encoder is named {name!r}; expected {', '.join(SHORT_NAMES)}, or open_clip's ARCHITECTURE/TAG."
        )
    return full_name


def named_encoder(
    name: str, *, revision: str | None = None, options: EncoderOptions | None = None, hub: HubSettings | None = None
) -> TextEncoder:
    """Load a text encoder by name.

    Args:
        name: ``"minilm-l6"``, ``"clip-vit-b-16"``, ``"clip-vit-b-32"``, open_clip's ``"ARCHITECTURE/TAG"``,
            ``"hf-hub:OWNER/NAME"`` or ``"local-dir:FOLDER"``.
        revision: Commit of open_clip weights on the Hub; None uses the pinned one, or else the newest.
        options: Device, dtype, batch size and treatment of long sentences.
        hub: How to reach the Hub.

    Raises:
        EmbeddingError: No encoder has that name, its weights are incomplete or not the known ones, or the encoder has
            no revisions.
        HubError: Its weights cannot be downloaded.
        MissingExtraError: The package that runs it is not installed.
    """
    full_name = encoder_id(name)
    if full_name == MINILM:
        _refuse_revision(revision)
        return SentenceTransformerEncoder.minilm(options=options)
    return OpenClipEncoder(full_name, revision=revision, options=options, hub=hub)


def planned_identity(name: str, *, revision: str | None, hub: HubSettings) -> tuple[str, str]:
    """Return the id and the revision that :func:`named_encoder`'s encoder would have, without loading it.

    The revision is "" if only the Hub knows it and the Hub does not answer.
    """
    full_name = encoder_id(name)
    if full_name == MINILM:
        _refuse_revision(revision)
        return MINILM, f"sha256:{MINILM_SHA256}"
    return planned_source(full_name, revision=revision, hub=hub)


def encoder_of(provenance: Provenance, *, hub: HubSettings | None = None) -> TextEncoder:
    """Load the encoder that made some embeddings, at the same revision.

    Args:
        provenance: Provenance of the embeddings.
        hub: How to reach the Hub.

    Raises:
        EmbeddingError: The provenance names no encoder that can be loaded by name, or its revision is not available.
        HubError: Its weights cannot be downloaded.
        MissingExtraError: The package that runs it is not installed.
    """
    name, recorded = provenance.encoder, provenance.encoder_revision
    advice = "Embed the sentences with it yourself: embed_classes(descriptions, encoder)."
    if name.startswith("local-dir:") or (name != MINILM and "/" not in name.removeprefix("hf-hub:")):
        raise EmbeddingError(f"{name!r}, which made these embeddings, cannot be loaded by name. {advice}")
    revision = None if not recorded or recorded.startswith("sha256:") else recorded
    encoder = named_encoder(name, revision=revision, hub=hub)
    if recorded and encoder.revision != recorded:
        raise EmbeddingError(
            f"These embeddings were made with {name} at {recorded}, but only {encoder.revision} is available. {advice}"
        )
    return encoder


def _refuse_revision(revision: str | None) -> None:
    if revision is not None:
        raise EmbeddingError(
            f"MiniLM comes from an installed package with sha256 {MINILM_SHA256[:12]}... and has no revisions; omit "
            f"{revision!r}."
        )
