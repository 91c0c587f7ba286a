"""``load_embeddings``: class embeddings of a dataset, from the first place that has them."""

import json
import logging

from resilient_heads.checks import instance_of
from resilient_heads.errors import ArgumentError, DescriptionError, EmbeddingError, HubError, MissingExtraError
from resilient_heads.text.embeddings import ClassEmbeddings
from resilient_heads.text.encoders.named import encoder_id
from resilient_heads.text.encoders.pins import MINILM
from resilient_heads.text.hub.files import fetch_file
from resilient_heads.text.hub.settings import HubSettings, check_revision
from resilient_heads.text.prebuilt.build import build_embeddings
from resilient_heads.text.prebuilt.bundled import load_bundled, unknown_name
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

    They come from the first place that has them: the local cache; the Hub, with commit and sha256 pinned by the
    manifest in the package; the package itself (MiniLM only); or they are built on this machine from the bundled
    descriptions and kept for the next call. The log names the place.

    Args:
        name: ``"imagenet1k"``, ``"cifar10"``, ``"cifar100"``, ``"stl10"``, ``"food101"`` or ``"digits"``.
        encoder: ``"minilm-l6"``, ``"clip-vit-b-16"``, ``"clip-vit-b-32"``, open_clip's ``"ARCHITECTURE/TAG"``,
            ``"hf-hub:OWNER/NAME"`` or ``"local-dir:FOLDER"``.
        revision: Commit of the published embeddings in place of the pinned one. They then come from the Hub or its
            cache only, and are checked against the manifest that was published with them.
        encoder_revision: Commit of the encoder in place of the pinned one. The embeddings are then built on this
            machine.
        offline: Never use the network. ``HF_HUB_OFFLINE=1`` in the environment has the same effect.
        hub: How to reach the Hub.
        manifest: Embeddings to trust in place of the manifest in the package.

    Raises:
        ArgumentError: ``manifest``, ``hub`` or a revision has the wrong type, or both revisions are given.
        EmbeddingError: No such embeddings exist, or no place has them; the message gives the reason for each place.
        HubError: The embeddings at ``revision`` cannot be downloaded.

    Example:
        >>> import resilient_heads as rh
        >>> rh.load_embeddings("cifar10", offline=True)
        ClassEmbeddings(10 classes, 384 dimensions, encoder='all-MiniLM-L6-v2')
    """
    if not isinstance(name, str):
        raise EmbeddingError(unknown_name(name))
    trusted = Manifest.of_package() if manifest is None else manifest
    instance_of("manifest", trusted, Manifest, example="Manifest.from_bytes(content)")
    check_revision("revision", revision)
    check_revision("encoder_revision", encoder_revision)
    full_name = encoder_id(encoder)
    settings = HubSettings.from_options(hub, offline=offline)
    entry = trusted.find(name, full_name)
    if entry is None and name not in trusted.bundled:
        raise EmbeddingError(unknown_name(name))
    if encoder_revision is not None and revision is not None:
        raise ArgumentError("revision= chooses published embeddings, encoder_revision= builds; pass one of them.")
    if encoder_revision is not None:
        return _build(name, full_name, encoder_revision, settings, reasons=[])
    if revision is not None:
        if entry is None:
            raise EmbeddingError(f"No embeddings of {name!r} with {full_name} are published; omit revision=.")
        return _at_revision(entry, revision, settings)
    reasons = []
    if entry is not None:
        try:
            return _published(entry, entry.revision, entry.sha256, settings)
        except HubError as error:
            logger.warning("The embeddings of %s cannot be taken from the Hub: %s", name, error)
            reasons.append(f"Hub: {error}")
    if full_name == MINILM and name in trusted.bundled:
        logger.info("Using the bundled embeddings of %s.", name)
        return load_bundled(name, manifest=trusted)
    return _build(name, full_name, None, settings, reasons=reasons)


def _at_revision(entry: HubEntry, revision: str, settings: HubSettings) -> ClassEmbeddings:
    """Return published embeddings at a revision that the manifest does not pin."""
    listing = fetch_file(entry.repo, "manifest.json", revision=revision, settings=settings)
    try:
        expected = str(json.loads(listing)["files"][entry.file]["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise HubError(f"The manifest of {entry.repo} at {revision} does not list {entry.file}.") from error
    return _published(entry, revision, expected, settings)


def _published(entry: HubEntry, revision: str, sha256: str, settings: HubSettings) -> ClassEmbeddings:
    content = fetch_file(entry.repo, entry.file, revision=revision, sha256=sha256, settings=settings)
    return ClassEmbeddings.from_bytes(content, name=entry.file)


def _build(
    name: str, encoder: str, revision: str | None, settings: HubSettings, *, reasons: list[str]
) -> ClassEmbeddings:
    """Build embeddings on this machine; if that fails, raise an error with the reasons of all places."""
    try:
        return build_embeddings(name, encoder, revision=revision, hub=settings)
    except (MissingExtraError, DescriptionError, EmbeddingError, HubError) as error:
        first = reasons or ["Hub: this release publishes none."]
        raise EmbeddingError(
            f"Embeddings of {name!r} with {encoder} are not available. {' '.join(first)} On this machine: {error} "
            'The package has encoder="minilm-l6".'
        ) from error
