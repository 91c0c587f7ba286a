"""Publish class embeddings: a folder that says what it is and proves what it holds, and its upload to the Hub."""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import HfApi

from resilient_heads.errors import EmbeddingError, HubError
from resilient_heads.files import file_sha256, write_atomic
from resilient_heads.text.embeddings import ClassEmbeddings
from resilient_heads.text.hub import HubSettings, check_reachable, explaining
from resilient_heads.text.manifest import HubEntry

_MANIFEST = "manifest.json"
_FORMAT = "resilient_heads.published/1"


def write_folder(
    embeddings: Mapping[str, ClassEmbeddings],
    folder: str | os.PathLike[str],
    *,
    licence: str = "apache-2.0",
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write embeddings, their manifest and a dataset card; equal input gives equal bytes.

    Args:
        embeddings: Dataset name (letters, digits, ``-``, ``_``, ``.``) to embeddings; several encoders may share one.
        folder: Where to write.
        licence: Licence identifier for the card.
        dtype: Dtype of the stored vectors.

    Raises:
        EmbeddingError: No embeddings, a name that makes no file name, or vectors that overflow ``dtype``.
    """
    folder = Path(folder)
    if not embeddings:
        raise EmbeddingError("There is nothing to publish; pass at least one set of embeddings.")
    files: dict[str, dict[str, object]] = {}
    for name, own in sorted(embeddings.items()):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise EmbeddingError(f"{name!r} makes no file name; use letters, digits, '-', '_' and '.'.")
        if not bool(own.vectors.to(dtype).isfinite().all()):
            raise EmbeddingError(f"The embeddings {name!r} overflow {dtype}; publish them as torch.float32.")
        path = own.save(folder / f"{name}.safetensors", dtype=dtype)
        files[path.name] = {
            "name": name,
            "sha256": file_sha256(path),
            "classes": own.num_classes,
            "dimensions": own.embed_dim,
            "dtype": str(dtype).removeprefix("torch."),
            "provenance": dataclasses.asdict(own.provenance),
        }
    listing = {"format": _FORMAT, "licence": licence, "files": files}
    write_atomic(folder / _MANIFEST, (json.dumps(listing, indent=2, sort_keys=True) + "\n").encode())
    write_atomic(folder / "README.md", _card(files, licence).encode())
    return folder


def verify_folder(folder: str | os.PathLike[str]) -> dict[str, ClassEmbeddings]:
    """Check a folder of :func:`write_folder` against its manifest.

    Returns:
        Dataset name to embeddings.

    Raises:
        EmbeddingError: There is no manifest, or a file is missing, damaged, or no part of it.
    """
    folder = Path(folder)
    files = _files(folder)
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
        found[str(record["name"])] = ClassEmbeddings.from_bytes(content, name=str(path))
    return found


def publish(
    folder: str | os.PathLike[str], repo: str, *, private: bool = False, hub: HubSettings | None = None
) -> tuple[HubEntry, ...]:
    """Upload a folder of :func:`write_folder` as a dataset repository.

    Args:
        folder: The folder; it is verified first.
        repo: ``"owner/name"``; made if it does not exist.
        private: Make a new repository private.
        hub: How the Hub is reached.

    Returns:
        What pins each file: enter it in a :class:`~resilient_heads.text.manifest.Manifest`.

    Raises:
        EmbeddingError: The folder does not verify.
        HubError: The Hub refuses or cannot be reached.
    """
    folder = Path(folder)
    verify_folder(folder)
    settings = hub or HubSettings()
    if settings.is_offline:
        raise HubError("Publishing needs the network, and offline mode forbids it.")
    api = HfApi(endpoint=settings.address, token=settings.token)
    files = _files(folder)
    check_reachable(settings.address)
    with explaining(f"Publishing to {repo}", settings):
        api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            repo_type="dataset",
            folder_path=folder,
            allow_patterns=[*files, _MANIFEST, "README.md"],
            commit_message="Publish class embeddings",
        )
    return tuple(
        HubEntry(
            name=str(record["name"]),
            encoder=str(record["encoder"]),
            repo=repo,
            revision=str(commit.oid),
            file=file,
            sha256=str(record["sha256"]),
        )
        for file, record in files.items()
    )


def _files(folder: Path) -> dict[str, dict[str, object]]:
    """Read the manifest: file to name, sha256 and encoder."""
    try:
        listing = json.loads((folder / _MANIFEST).read_bytes())
        if listing["format"] != _FORMAT:
            raise ValueError(f"format {listing['format']!r}")
        return {
            str(file): {
                "name": str(record["name"]),
                "sha256": str(record["sha256"]),
                "encoder": str(record["provenance"]["encoder"]),
            }
            for file, record in listing["files"].items()
            if Path(file).name == file
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EmbeddingError(f"{folder} is no folder of published embeddings: {error!r}.") from error


def _card(files: Mapping[str, Mapping[str, object]], licence: str) -> str:
    """Return the dataset card."""
    rows = []
    for file, record in files.items():
        made = record["provenance"]
        encoder = made["encoder"] if isinstance(made, dict) else ""
        rows.append(f"| `{file}` | {record['classes']} | {record['dimensions']} | {encoder} | `{record['sha256']}` |")
    made_of = "\n".join(
        f"- `{file}`: `{json.dumps(record['provenance'], sort_keys=True)}`" for file, record in files.items()
    )
    first = next(iter(files))
    return f"""---
license: {licence}
tags:
- class-embeddings
- text-guided-classifier
- resilient-heads
---

# Class embeddings

One vector for each class of an image dataset: the mean of a text encoder's embeddings of sentences that say how the
class looks. They are the rows that a text-guided classifier head starts from.

| file | classes | dimensions | encoder | sha256 |
|---|---|---|---|---|
{chr(10).join(rows)}

## How they were made

{made_of}

`descriptions_sha256` is `ClassDescriptions.sha256` of the sentences; the same sentences and encoder give these bytes.

## How to load them

```python
from huggingface_hub import hf_hub_download
from resilient_heads import ClassEmbeddings

path = hf_hub_download("OWNER/NAME", "{first}", repo_type="dataset", revision="COMMIT")
embeddings = ClassEmbeddings.load(path)
```

Check the file against the sha256 above: the client compares sizes only. `manifest.json` holds the same digests.
"""
