"""Prebuilt class embeddings: from the cache, the Hub, the wheel, or built here; the first that can be had."""

import dataclasses
import hashlib
import json
import logging
import os
import re
from pathlib import Path

from resilient_heads.errors import DescriptionError, EmbeddingError, HubError, MissingExtraError
from resilient_heads.text.embeddings import ClassEmbeddings, Provenance
from resilient_heads.text.encoders.named import encoder_id, named_encoder, planned_identity
from resilient_heads.text.encoders.pins import MINILM
from resilient_heads.text.encoders.pooling import POOLING, embed_classes
from resilient_heads.text.hub.files import HubFile, cached_file, fetch_file
from resilient_heads.text.hub.settings import HubSettings
from resilient_heads.text.prebuilt.bundled import load_bundled, load_descriptions, unknown
from resilient_heads.text.prebuilt.manifest import HubEntry, Manifest

logger = logging.getLogger(__name__)


def load_embeddings(
    name: str,
    *,
    encoder: str = "minilm-l6",
    revision: str | None = None,
    encoder_revision: str | None = None,
    offline: bool = False,
    hub: HubSettings | None = None,
    manifest: Manifest | None = None,
) -> ClassEmbeddings:
    """Return prebuilt class embeddings of a dataset.

    They come from the first place that has them: the local cache, the Hub (commit and sha256 pinned by the manifest in
    the wheel), the wheel (MiniLM), or they are built here from the wheel's descriptions, once for each revision of the
    encoder. The log says which.

    Args:
        name: ``"imagenet1k"``, ``"cifar10"``, ``"cifar100"``, ``"stl10"``, ``"food101"`` or ``"digits"``.
        encoder: ``"minilm-l6"``, ``"clip-vit-b-16"``, ``"clip-vit-b-32"``, open_clip's ``"ARCHITECTURE/TAG"``,
            ``"hf-hub:OWNER/NAME"`` or ``"local-dir:FOLDER"``.
        revision: Another commit of the published embeddings than the pinned one. Only the Hub and its cache are asked,
            and the file is checked against the manifest that was published with it.
        encoder_revision: Another commit of the encoder's weights than the pinned one. The embeddings are then built
            here with it, whatever is published.
        offline: Never touch the network. HF_HUB_OFFLINE=1 in the environment says the same.
        hub: How the Hub is reached, where the usual settings do not fit.
        manifest: What to trust instead of the wheel's manifest.

    Raises:
        EmbeddingError: There are no such embeddings, or none of the places has them; the message says why for each.
        HubError: ``revision`` was given and cannot be had.
    """
    if not isinstance(name, str):
        raise EmbeddingError(unknown(name))
    if manifest is not None and not isinstance(manifest, Manifest):
        raise EmbeddingError(f"manifest must be a Manifest, found {manifest!r:.60}; Manifest.from_bytes reads one.")
    for what, given in (("revision", revision), ("encoder_revision", encoder_revision)):
        if given is not None and (not isinstance(given, str) or not given.strip()):
            raise EmbeddingError(f"{what} must be a commit, branch or tag, or None; found {given!r:.60}.")
    trusted = manifest or Manifest.of_wheel()
    known = encoder_id(encoder)
    settings = HubSettings.from_options(hub, offline=offline)
    entry = trusted.find(name, known)
    if entry is None and name not in trusted.bundled:
        raise EmbeddingError(unknown(name))
    if encoder_revision is not None:
        if revision is not None:
            raise EmbeddingError("revision= chooses published embeddings, encoder_revision= builds; pass one of them.")
        return _built_here(name, known, encoder_revision, settings, [])
    if revision is not None:
        return _at_revision(entry, revision, settings, what=f"{name!r} with {known}")
    failures: list[str] = []
    if entry is not None and (found := _published(entry, settings, failures)) is not None:
        return found
    if known == MINILM and name in trusted.bundled:
        logger.info("%s: took the wheel's embeddings.", name)
        return load_bundled(name, manifest=trusted)
    return _built_here(name, known, None, settings, failures)


def _published(entry: HubEntry, settings: HubSettings, failures: list[str]) -> ClassEmbeddings | None:
    """Return published embeddings from the cache or the Hub; a reason is added to ``failures`` if there are none."""
    wanted = HubFile(repo=entry.repo, file=entry.file, revision=entry.revision, sha256=entry.sha256)
    content = cached_file(wanted, settings)
    if content is not None:
        logger.info("%s: took the cached file of %s@%s.", entry.name, entry.repo, entry.revision[:12])
        return ClassEmbeddings.from_bytes(content, name=entry.file)
    try:
        content = fetch_file(wanted, settings)
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
    listing = fetch_file(HubFile(repo=entry.repo, file="manifest.json", revision=revision), settings)
    try:
        expected = str(json.loads(listing)["files"][entry.file]["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise HubError(f"The manifest of {entry.repo} at {revision} says nothing of {entry.file}.") from error
    content = fetch_file(HubFile(repo=entry.repo, file=entry.file, revision=revision, sha256=expected), settings)
    logger.info("%s: took %s@%s, which this release does not pin.", entry.name, entry.repo, revision)
    return ClassEmbeddings.from_bytes(content, name=entry.file)


def _built_here(
    name: str, known: str, revision: str | None, settings: HubSettings, failures: list[str]
) -> ClassEmbeddings:
    """Embed the wheel's descriptions, or return what was built before from the same."""
    try:
        descriptions = load_descriptions(name)
        identity, planned = planned_identity(known, revision=revision, hub=settings)
        wanted = Provenance(
            encoder=identity, encoder_revision=planned, descriptions_sha256=descriptions.sha256, pooling=POOLING
        )
        if (kept := _kept(name, wanted)) is not None:
            return kept
        encoder = named_encoder(known, revision=revision, hub=settings)
        built = embed_classes(descriptions, encoder)
    except (MissingExtraError, DescriptionError, EmbeddingError, HubError) as error:
        reasons = [*failures, f"built here: {error}"]
        if len(reasons) == 1:
            reasons.insert(0, "Hub: none are published in this release")
        raise EmbeddingError(
            f"No embeddings of {name!r} with {known} can be had. "
            + " ".join(reasons)
            + ' The wheel has encoder="minilm-l6".'
        ) from error
    logger.info("%s: built here with %s at %s.", name, built.provenance.encoder, built.provenance.encoder_revision)
    try:
        built.save(_build_path(name, built.provenance))
    except OSError as error:
        logger.warning("%s: built, but not kept: %s", name, error)
    return built


def _kept(name: str, wanted: Provenance) -> ClassEmbeddings | None:
    """Return what was built before; where the encoder's revision cannot be known now, the latest of any revision."""
    path = _build_path(name, wanted)
    candidates = [path]
    if not wanted.encoder_revision:
        others = path.parent.glob(f"{name}--{_slug(wanted.encoder)}--*.safetensors")
        candidates = sorted(others, key=lambda other: other.stat().st_mtime, reverse=True)
    for candidate in candidates:
        try:
            built = ClassEmbeddings.load(candidate)
        except (OSError, EmbeddingError) as error:
            logger.debug("%s: nothing built before: %s", name, error)
            continue
        found = built.provenance
        asked = dataclasses.replace(wanted, weights_sha256=found.weights_sha256)
        if not wanted.encoder_revision:
            asked = dataclasses.replace(asked, encoder_revision=found.encoder_revision)
        if found == asked:
            logger.info(
                "%s: took what was built here before with %s at %s, %s.",
                *(name, found.encoder, found.encoder_revision, candidate),
            )
            return built
    return None


def _build_path(name: str, made: Provenance) -> Path:
    """Return where embeddings built on this machine are kept: the name changes with whatever they depend on."""
    root = os.environ.get("RESILIENT_HEADS_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "resilient_heads"
    )
    key = [made.encoder, made.encoder_revision, made.descriptions_sha256, made.pooling, made.normalized]
    tag = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    return Path(root) / f"{name}--{_slug(made.encoder)}--{tag}.safetensors"


def _slug(encoder: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", encoder).strip("-")
