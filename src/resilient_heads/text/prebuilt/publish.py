"""Publish class embeddings: a folder that says what it is and proves what it holds, and its upload to the Hub."""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from resilient_heads.errors import EmbeddingError
from resilient_heads.files import as_path, file_sha256, write_atomic
from resilient_heads.text.embeddings import ClassEmbeddings
from resilient_heads.text.hub.settings import HubSettings
from resilient_heads.text.hub.upload import check_upload, upload_folder
from resilient_heads.text.prebuilt.card import CARD, dataset_card
from resilient_heads.text.prebuilt.manifest import HubEntry

_MANIFEST = "manifest.json"
_MARK = "OWNER-AND-NAME"
_FORMAT = "resilient_heads.published/1"


def write_folder(
    embeddings: Mapping[str, ClassEmbeddings],
    folder: str | os.PathLike[str],
    *,
    licence: str = "apache-2.0",
    dtype: torch.dtype | None = None,
) -> Path:
    """Write embeddings, their manifest and a dataset card; equal input gives equal bytes.

    Files of an earlier publication in the same folder that are no part of this one are removed.

    Args:
        embeddings: Dataset name (letters, digits, ``-``, ``_``, ``.``) to embeddings; several encoders may share one.
        folder: Where to write.
        licence: Licence identifier for the card.
        dtype: Dtype of the stored vectors; None stores them as they are.

    Raises:
        EmbeddingError: No embeddings, a name that makes no file name, vectors that overflow ``dtype``, or a folder with
            embeddings, a manifest or a card that are of no earlier publication.
    """
    folder = as_path(folder, "folder", error=EmbeddingError)
    if not isinstance(embeddings, Mapping):
        raise EmbeddingError(f"embeddings must map names to ClassEmbeddings, found {embeddings!r:.60}.")
    if not embeddings:
        raise EmbeddingError("There is nothing to publish; pass at least one set of embeddings.")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise EmbeddingError(f"dtype must be a floating dtype such as torch.float16, found {dtype!r:.60}.")
    for name, own in embeddings.items():
        if not isinstance(own, ClassEmbeddings):
            raise EmbeddingError(
                f"{name!r} must be ClassEmbeddings, found {own!r:.60}; ClassEmbeddings.load reads a file."
            )
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise EmbeddingError(f"{name!r} makes no file name; use letters, digits, '-', '_' and '.'.")
        stored = own.vectors.to(dtype)
        if not bool(stored.isfinite().all()):
            raise EmbeddingError(f"The embeddings {name!r} overflow {dtype}; publish them as torch.float32.")
        if bool(stored.eq(0).all(dim=1).any()):
            raise EmbeddingError(f"In {dtype} a vector of {name!r} is all zeros; publish them as torch.float32.")
    old = _earlier(folder, {f"{name}.safetensors" for name in embeddings})
    files: dict[str, dict[str, object]] = {}
    for name, own in sorted(embeddings.items()):
        path = own.save(folder / f"{name}.safetensors", dtype=dtype)
        files[path.name] = {
            "name": name,
            "sha256": file_sha256(path),
            "classes": own.num_classes,
            "dimensions": own.embed_dim,
            "dtype": str(dtype or own.vectors.dtype).removeprefix("torch."),
            "provenance": dataclasses.asdict(own.provenance),
        }
    listing = {"format": _FORMAT, "licence": licence, "files": files}
    write_atomic(folder / _MANIFEST, (json.dumps(listing, indent=2, sort_keys=True) + "\n").encode())
    write_atomic(folder / CARD, dataset_card(listing).encode())
    for path in old:
        path.unlink(missing_ok=True)
    return folder


def _earlier(folder: Path, kept: set[str]) -> list[Path]:
    """Return the files of an earlier publication that go; refuse a folder that holds files of somebody else."""
    present = {path.name for path in folder.glob("*.safetensors")} if folder.is_dir() else set()
    about = [name for name in (_MANIFEST, CARD) if (folder / name).exists()]
    if not present and not about:
        return []
    if about and _MANIFEST not in about:
        raise EmbeddingError(f"{folder} holds {CARD}, which no earlier publication put there; name another folder.")
    listed = set(_files(folder)) if about else set()  # raises where the manifest is somebody else's
    if spare := sorted(present - listed):
        raise EmbeddingError(
            f"{folder} holds {', '.join(spare)}, which no earlier publication put there; name another folder."
        )
    return [folder / name for name in sorted(present - kept)]


def verify_folder(folder: str | os.PathLike[str], *, manifest_sha256: str | None = None) -> dict[str, ClassEmbeddings]:
    """Check a folder of :func:`write_folder` against its manifest.

    Args:
        folder: The folder.
        manifest_sha256: Hex digest that its manifest must have; through it, every file is pinned.

    Returns:
        Dataset name to embeddings.

    Raises:
        EmbeddingError: There is no manifest or another one, or a file is missing, damaged, or no part of it.
    """
    folder = as_path(folder, "folder", error=EmbeddingError)
    files = _files(folder)
    if manifest_sha256 is not None and (found_digest := file_sha256(folder / _MANIFEST)) != manifest_sha256.lower():
        raise EmbeddingError(f"{folder / _MANIFEST} has sha256 {found_digest}, expected {manifest_sha256}.")
    spare = {path.name for path in folder.glob("*.safetensors")} - set(files)
    if spare:
        raise EmbeddingError(f"{folder} also holds {', '.join(sorted(spare))}, which its {_MANIFEST} does not list.")
    found = {}
    for file, record in files.items():
        path = folder / file
        if not path.is_file():
            raise EmbeddingError(f"{path} is missing.")
        content = path.read_bytes()
        if (digest := hashlib.sha256(content).hexdigest()) != record["sha256"]:
            raise EmbeddingError(f"{path} is damaged: sha256 {digest[:12]}, expected {str(record['sha256'])[:12]}.")
        found[record["name"]] = ClassEmbeddings.from_bytes(content, name=str(path))
    return found


def publish(
    folder: str | os.PathLike[str], repo: str, *, private: bool = False, hub: HubSettings | None = None
) -> tuple[HubEntry, ...]:
    """Upload a folder of :func:`write_folder` as a dataset repository.

    The card says from then on where it is published, unless somebody has written another one.

    Args:
        folder: The folder; it is verified first.
        repo: ``"owner/name"``; made if it does not exist.
        private: Make a new repository private.
        hub: How the Hub is reached.

    Returns:
        What pins each file: enter it in a :class:`~resilient_heads.text.prebuilt.manifest.Manifest`.

    Raises:
        EmbeddingError: The folder does not verify.
        HubError: The Hub refuses or cannot be reached.
    """
    folder = as_path(folder, "folder", error=EmbeddingError)
    settings = HubSettings.from_options(hub)
    check_upload(repo, settings)
    verify_folder(folder)
    files = _files(folder)
    _sign_card(folder, repo)
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
        HubEntry(
            name=record["name"],
            encoder=record["encoder"],
            repo=repo,
            revision=commit,
            file=file,
            sha256=record["sha256"],
        )
        for file, record in files.items()
    )


def _sign_card(folder: Path, repo: str) -> None:
    """Put the repository into the card that :func:`write_folder` wrote; leave a card of somebody else alone."""
    listing = json.loads((folder / _MANIFEST).read_bytes())
    card = folder / CARD
    # Any card of ours is the same but for the repository, whichever that was the last time.
    own = re.escape(dataset_card(listing, repo=_MARK)).replace(re.escape(_MARK), r"[^\s\"]+")
    content = card.read_text(encoding="utf-8") if card.is_file() else dataset_card(listing)
    if content == dataset_card(listing) or re.fullmatch(own, content):
        write_atomic(card, dataset_card(listing, repo=repo).encode())


def _files(folder: Path) -> dict[str, dict[str, str]]:
    """Read the manifest: file to its record."""
    try:
        listing = json.loads((folder / _MANIFEST).read_bytes())
        if listing["format"] != _FORMAT:
            raise ValueError(f"format {listing['format']!r}")
        files = {
            str(file): {
                "name": str(record["name"]),
                "sha256": str(record["sha256"]),
                "encoder": str(record["provenance"]["encoder"]),
            }
            for file, record in listing["files"].items()
        }
        for file in files:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors", file):
                raise ValueError(f"it lists {file!r}, which is no file of embeddings in this folder")
        if not files:
            raise ValueError("it lists no file")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EmbeddingError(f"{folder} is no folder of published embeddings: {error!r}.") from error
    return files
