"""Build class embeddings from the bundled descriptions, once for each revision of an encoder."""

import dataclasses
import hashlib
import json
import logging
import os
import re
from pathlib import Path

from resilient_heads.errors import EmbeddingError
from resilient_heads.text.embeddings import ClassEmbeddings, Provenance
from resilient_heads.text.encoders.named import named_encoder, planned_identity
from resilient_heads.text.encoders.pooling import POOLING, embed_classes
from resilient_heads.text.hub.settings import HubSettings
from resilient_heads.text.prebuilt.bundled import load_descriptions

logger = logging.getLogger(__name__)


def build_embeddings(name: str, encoder: str, *, revision: str | None, hub: HubSettings) -> ClassEmbeddings:
    """Return the embeddings that an earlier call built from the same input, or build and keep them.

    The errors are those of :func:`load_descriptions`, :func:`named_encoder` and :func:`embed_classes`.
    """
    descriptions = load_descriptions(name)
    identity, planned = planned_identity(encoder, revision=revision, hub=hub)
    wanted = Provenance(
        encoder=identity, encoder_revision=planned, descriptions_sha256=descriptions.sha256, pooling=POOLING
    )
    if (kept := _built_before(name, wanted)) is not None:
        return kept
    built = embed_classes(descriptions, named_encoder(encoder, revision=revision, hub=hub))
    made = built.provenance
    logger.info("Built the embeddings of %s with %s at %s.", name, made.encoder, made.encoder_revision)
    try:
        built.save(kept_path(name, made))
    except OSError as error:
        logger.warning("The embeddings of %s could not be kept for the next call: %s", name, error)
    return built


def kept_path(name: str, provenance: Provenance) -> Path:
    """Return the file that keeps embeddings; its name depends on everything that decides their content."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    root = os.environ.get("RESILIENT_HEADS_CACHE") or os.path.join(cache, "resilient_heads")
    made = provenance
    key = [made.encoder, made.encoder_revision, made.descriptions_sha256, made.pooling, made.normalized]
    tag = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    return Path(root) / f"{name}--{_file_name(made.encoder)}--{tag}.safetensors"


def _built_before(name: str, wanted: Provenance) -> ClassEmbeddings | None:
    """Return kept embeddings; if the encoder's revision is unknown, the newest file of any revision."""
    path = kept_path(name, wanted)
    candidates = [path]
    if not wanted.encoder_revision:
        others = path.parent.glob(f"{name}--{_file_name(wanted.encoder)}--*.safetensors")
        candidates = sorted(others, key=lambda other: other.stat().st_mtime, reverse=True)
    for candidate in candidates:
        try:
            kept = ClassEmbeddings.load(candidate)
        except (OSError, EmbeddingError) as error:
            logger.debug("No kept embeddings of %s: %s", name, error)
            continue
        made = kept.provenance
        expected = dataclasses.replace(
            wanted,
            weights_sha256=made.weights_sha256,
            encoder_revision=wanted.encoder_revision or made.encoder_revision,
        )
        if made == expected:
            logger.info(
                "Using the embeddings of %s that were built before with %s at %s: %s.",
                *(name, made.encoder, made.encoder_revision, candidate),
            )
            return kept
    return None


def _file_name(encoder: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", encoder).strip("-")
