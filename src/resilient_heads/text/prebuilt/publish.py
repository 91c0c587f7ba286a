"""Publish class embeddings: write a folder, verify it, upload it to the Hub."""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from resilient_heads.checks import instance_of
from resilient_heads.errors import EmbeddingError
from resilient_heads.files import as_path, file_sha256, write_atomic
from resilient_heads.text.embeddings import ClassEmbeddings
from resilient_heads.text.hub.settings import HubSettings
from resilient_heads.text.hub.upload import check_upload, upload_folder
from resilient_heads.text.prebuilt.card import CARD, dataset_card
from resilient_heads.text.prebuilt.manifest import HubEntry

_MANIFEST = "manifest.json"
_FORMAT = "resilient_heads.published/1"


class _Listed(NamedTuple):
    """A file as the folder's manifest lists it."""

    name: str
    sha256: str
    encoder: str


def write_folder(
    embeddings: Mapping[str, ClassEmbeddings],
    folder: str | os.PathLike[str],
    *,
    licence: str = "apache-2.0",
    dtype: torch.dtype | None = None,
) -> Path:
    """Write embeddings, a manifest and a dataset card into a folder. Equal input gives equal bytes.

    Files that an earlier call wrote into the folder are replaced or removed; other files are never touched.

    Args:
        embeddings: Dataset name to embeddings. A name consists of letters, digits, ``-``, ``_`` and ``.``.
        folder: The folder.
        licence: Licence identifier for the card.
        dtype: Floating dtype of the stored vectors; None keeps theirs.

    Raises:
        ArgumentError: ``embeddings`` or ``dtype`` has the wrong type.
        EmbeddingError: There are no embeddings, a name cannot be a file name, a vector overflows in ``dtype``, or the
            folder has a manifest, a card or embeddings that no earlier call wrote.
    """
    folder = as_path(folder, "folder", error=EmbeddingError)
    instance_of("embeddings", embeddings, Mapping, example='{"pets": embeddings}')  # type: ignore[type-abstract]
    if not embeddings:
        raise EmbeddingError("There is nothing to publish; pass at least one set of embeddings.")
    for name, value in embeddings.items():
        instance_of(f"embeddings[{name!r}]", value, ClassEmbeddings, example="ClassEmbeddings.load(path)")
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise EmbeddingError(f"{name!r} cannot be a file name; use letters, digits, '-', '_' and '.'.")
        value.vectors_as(dtype)
    outdated = _outdated_files(folder, {f"{name}.safetensors" for name in embeddings})
    records: dict[str, dict[str, object]] = {}
    for name, value in sorted(embeddings.items()):
        path = value.save(folder / f"{name}.safetensors", dtype=dtype)
        records[path.name] = {
            "name": name,
            "sha256": file_sha256(path),
            "classes": value.num_classes,
            "dimensions": value.embed_dim,
            "dtype": str(dtype or value.vectors.dtype).removeprefix("torch."),
            "provenance": dataclasses.asdict(value.provenance),
        }
    manifest = {"format": _FORMAT, "licence": licence, "files": records}
    write_atomic(folder / _MANIFEST, (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode())
    write_atomic(folder / CARD, dataset_card(manifest).encode())
    for path in outdated:
        path.unlink(missing_ok=True)
    return folder


def verify_folder(folder: str | os.PathLike[str], *, manifest_sha256: str | None = None) -> dict[str, ClassEmbeddings]:
    """Check a folder of :func:`write_folder` against its manifest, and return its embeddings by dataset name.

    Args:
        folder: The folder.
        manifest_sha256: Hex digest that the manifest must have. It pins every file, since the manifest lists their
            digests.

    Raises:
        EmbeddingError: The manifest is missing or another one, or a file is missing, damaged or not listed.
    """
    folder = as_path(folder, "folder", error=EmbeddingError)
    files = _read_manifest(folder)
    digest = file_sha256(folder / _MANIFEST)
    if manifest_sha256 is not None and digest != manifest_sha256.lower():
        raise EmbeddingError(f"{folder / _MANIFEST} has sha256 {digest}, expected {manifest_sha256}.")
    unlisted = {path.name for path in folder.glob("*.safetensors")} - set(files)
    if unlisted:
        raise EmbeddingError(f"{folder} also has {', '.join(sorted(unlisted))}, which its {_MANIFEST} does not list.")
    verified = {}
    for file, listed in files.items():
        path = folder / file
        if not path.is_file():
            raise EmbeddingError(f"{path} is missing.")
        content = path.read_bytes()
        if (digest := hashlib.sha256(content).hexdigest()) != listed.sha256:
            raise EmbeddingError(f"{path} is damaged: sha256 {digest[:12]}, expected {listed.sha256[:12]}.")
        verified[listed.name] = ClassEmbeddings.from_bytes(content, name=str(path))
    return verified


def publish(
    folder: str | os.PathLike[str], repo: str, *, private: bool = False, hub: HubSettings | None = None
) -> tuple[HubEntry, ...]:
    """Upload a folder of :func:`write_folder` as a dataset repository, and return what pins each file.

    The function writes the repository's name into the card, unless somebody has edited the card.

    Args:
        folder: The folder; it is verified first.
        repo: ``"owner/name"``; created if it does not exist.
        private: Make a new repository private.
        hub: How to reach the Hub.

    Returns:
        Entries for :class:`~resilient_heads.text.prebuilt.manifest.Manifest`.

    Raises:
        ArgumentError: ``repo`` has another form, or ``hub`` another type.
        EmbeddingError: The folder does not verify.
        HubError: The Hub refuses or cannot be reached.
    """
    folder = as_path(folder, "folder", error=EmbeddingError)
    settings = HubSettings.from_options(hub)
    verify_folder(folder)
    check_upload(repo, settings)
    files = _read_manifest(folder)
    _name_repository(folder, repo)
    commit = upload_folder(
        folder,
        repo,
        files=[*files, _MANIFEST, CARD],
        message="Publish class embeddings",
        repo_type="dataset",
        private=private,
        settings=settings,
    )
    return tuple(
        HubEntry(name=listed.name, encoder=listed.encoder, repo=repo, revision=commit, file=file, sha256=listed.sha256)
        for file, listed in files.items()
    )


def _outdated_files(folder: Path, kept: set[str]) -> list[Path]:
    """Return the files of an earlier call that go; refuse a folder with files that no earlier call wrote."""
    present = {path.name for path in folder.glob("*.safetensors")} if folder.is_dir() else set()
    if (folder / _MANIFEST).exists():
        foreign = sorted(present - set(_read_manifest(folder)))
    else:
        foreign = [*sorted(present), *([CARD] if (folder / CARD).exists() else [])]
    if foreign:
        raise EmbeddingError(
            f"{folder} has {', '.join(foreign)}, which write_folder did not write there; name another folder."
        )
    return [folder / name for name in sorted(present - kept)]


def _name_repository(folder: Path, repo: str) -> None:
    """Write the repository's name into the card, unless somebody has edited it."""
    manifest = json.loads((folder / _MANIFEST).read_bytes())
    card = folder / CARD
    content = card.read_text(encoding="utf-8") if card.is_file() else dataset_card(manifest)
    earlier = re.search(r'hf_hub_download\("(.+?)"', content)
    if content == dataset_card(manifest, repo=earlier and earlier[1]):
        write_atomic(card, dataset_card(manifest, repo=repo).encode())


def _read_manifest(folder: Path) -> dict[str, _Listed]:
    """Return the files that the folder's manifest lists."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        if manifest["format"] != _FORMAT:
            raise ValueError(f"format {manifest['format']!r}")
        files = {
            str(file): _Listed(str(record["name"]), str(record["sha256"]), str(record["provenance"]["encoder"]))
            for file, record in manifest["files"].items()
        }
        for file in files:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors", file):
                raise ValueError(f"it lists {file!r}, which is not a file of embeddings in this folder")
        if not files:
            raise ValueError("it lists no file")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EmbeddingError(f"{folder} is not a folder of published embeddings: {error!r}.") from error
    return files
