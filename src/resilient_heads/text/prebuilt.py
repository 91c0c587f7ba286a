"""Prebuilt class embeddings: from the cache, the Hub, the wheel, or built here; the first that can be had."""

import hashlib
import json
import logging
import os
import re
from pathlib import Path

from resilient_heads.errors import EmbeddingError, HubError, MissingExtraError
from resilient_heads.text.bundled import load_bundled, load_descriptions, unknown
from resilient_heads.text.embeddings import ClassEmbeddings
from resilient_heads.text.encoders.named import MINILM, encoder_id, named_encoder
from resilient_heads.text.hub import HubSettings, cached_file, fetch_file
from resilient_heads.text.manifest import HubEntry, Manifest
from resilient_heads.text.pooling import embed_classes

logger = logging.getLogger(__name__)


def load_embeddings(
    name: str,
    *,
    encoder: str = "minilm-l6",
    revision: str | None = None,
    offline: bool = False,
    hub: HubSettings | None = None,
    manifest: Manifest | None = None,
) -> ClassEmbeddings:
    """Return prebuilt class embeddings of a dataset.

    They come from the first place that has them: the local cache, the Hub (commit and sha256 pinned by the manifest in
    the wheel), the wheel (MiniLM), or they are built here from the wheel's descriptions, once. The log says which.

    Args:
        name: ``"imagenet1k"``, ``"cifar10"``, ``"cifar100"``, ``"stl10"``, ``"food101"`` or ``"digits"``.
        encoder: ``"minilm-l6"``, ``"clip-vit-b-16"``, ``"clip-vit-b-32"``, or open_clip's ``"ARCHITECTURE/TAG"``.
        revision: Another commit of the published embeddings than the pinned one. Only the Hub and its cache are asked,
            and the file is checked against the manifest that was published with it.
        offline: Never touch the network. HF_HUB_OFFLINE=1 in the environment says the same.
        hub: How the Hub is reached, where the usual settings do not fit.
        manifest: What to trust instead of the wheel's manifest.

    Raises:
        EmbeddingError: There are no such embeddings, or none of the places has them; the message says why for each.
        HubError: ``revision`` was given and cannot be had.
    """
    trusted = manifest or Manifest.of_wheel()
    known = encoder_id(encoder)
    settings = hub or HubSettings(offline=offline)
    if offline and not settings.offline:
        settings = HubSettings(
            offline=True, endpoint=settings.endpoint, cache_dir=settings.cache_dir, token=settings.token
        )
    entry = trusted.find(name, known)
    if entry is None and name not in trusted.bundled:
        raise EmbeddingError(unknown(name))
    if revision is not None:
        return _at_revision(entry, revision, settings, what=f"{name!r} with {known}")
    failures: list[str] = []
    if entry is not None and (found := _published(entry, settings, failures)) is not None:
        return found
    if known == MINILM and name in trusted.bundled:
        logger.info("%s: took the wheel's embeddings.", name)
        return load_bundled(name)
    return _built_here(name, known, settings, failures)


def _published(entry: HubEntry, settings: HubSettings, failures: list[str]) -> ClassEmbeddings | None:
    """Return published embeddings from the cache or the Hub; a reason is added to ``failures`` if there are none."""
    pinned = {"revision": entry.revision, "sha256": entry.sha256}
    content = cached_file(entry.repo, entry.file, **pinned, repo_type="dataset", settings=settings)
    if content is not None:
        logger.info("%s: took the cached file of %s@%s.", entry.name, entry.repo, entry.revision[:12])
        return ClassEmbeddings.from_bytes(content, name=entry.file)
    try:
        content = fetch_file(entry.repo, entry.file, **pinned, repo_type="dataset", settings=settings)
    except HubError as error:
        logger.warning("%s: not from the Hub: %s", entry.name, error)
        failures.append(f"Hub: {error}")
        return None
    logger.info("%s: downloaded from %s@%s.", entry.name, entry.repo, entry.revision[:12])
    return ClassEmbeddings.from_bytes(content, name=entry.file)


def _at_revision(entry: HubEntry | None, revision: str, settings: HubSettings, *, what: str) -> ClassEmbeddings:
    """Return published embeddings at a revision that the manifest does not pin."""
    if entry is None:
        raise EmbeddingError(f"No published embeddings of {what} are known, so there is no revision to choose.")
    listing = fetch_file(
        entry.repo, "manifest.json", revision=revision, sha256=None, repo_type="dataset", settings=settings
    )
    try:
        expected = str(json.loads(listing)["files"][entry.file]["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise HubError(f"The manifest of {entry.repo} at {revision} says nothing of {entry.file}.") from error
    content = fetch_file(
        entry.repo, entry.file, revision=revision, sha256=expected, repo_type="dataset", settings=settings
    )
    logger.info("%s: took %s@%s, which this release does not pin.", entry.name, entry.repo, revision)
    return ClassEmbeddings.from_bytes(content, name=entry.file)


def _built_here(name: str, known: str, settings: HubSettings, failures: list[str]) -> ClassEmbeddings:
    """Embed the wheel's descriptions, or return what was built before."""
    descriptions = load_descriptions(name)
    path = _build_path(name, known, descriptions.sha256)
    try:
        built = ClassEmbeddings.load(path)
        if (built.provenance.encoder, built.provenance.descriptions_sha256) == (known, descriptions.sha256):
            logger.info("%s: took what was built here before, %s.", name, path)
            return built
    except (OSError, EmbeddingError) as error:
        logger.debug("%s: nothing built before: %s", name, error)
    try:
        encoder = named_encoder(known, offline=settings.is_offline)
        built = embed_classes(descriptions, encoder)
    except (MissingExtraError, EmbeddingError, HubError) as error:
        reasons = [*failures, f"built here: {error}"]
        if len(reasons) == 1:
            reasons.insert(0, "Hub: none are published in this release")
        raise EmbeddingError(
            f"No embeddings of {name!r} with {known} can be had. "
            + " ".join(reasons)
            + ' The wheel has encoder="minilm-l6".'
        ) from error
    logger.info("%s: built here with %s.", name, known)
    try:
        built.save(path)
    except OSError as error:
        logger.warning("%s: built, but not kept: %s", name, error)
    return built


def _build_path(name: str, known: str, digest: str) -> Path:
    """Return where embeddings built on this machine are kept."""
    root = os.environ.get("RESILIENT_HEADS_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "resilient_heads"
    )
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", known).strip("-")
    tag = hashlib.sha256(f"{known} {digest}".encode()).hexdigest()[:16]
    return Path(root) / f"{name}--{slug}--{tag}.safetensors"
