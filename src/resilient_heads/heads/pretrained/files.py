"""The files of a saved head: written whole, read only when they all fit together."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from resilient_heads.errors import EmbeddingError, ModelError
from resilient_heads.files import as_path, file_sha256, write_atomic
from resilient_heads.heads.pretrained.config import CARD, CONFIG, FORMAT, TEXT, WEIGHTS, HeadConfig
from resilient_heads.text.embeddings import ClassEmbeddings
from resilient_heads.text.hub.settings import HubSettings
from resilient_heads.text.hub.snapshots import fetch_snapshot
from resilient_heads.text.hub.upload import check_upload, upload_folder


def write_head(head: Any, folder: str | os.PathLike[str], card: bytes) -> Path:
    """Write a head's files into a folder, config.json last.

    Raises:
        ModelError: The head's ``in_features`` are still open, or the folder holds files of something else. The folder
            is unchanged then.
    """
    folder = as_path(folder, "folder", error=ModelError)
    HeadConfig.of(head, {})  # refuses an open head before the first write
    _refuse_foreign(folder)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
    text, verified = head.text, [WEIGHTS]
    if text is not None:
        text.save(folder / TEXT)
        verified.append(TEXT)
    write_atomic(folder / WEIGHTS, save_tensors(state, {"format": "pt"}))
    write_atomic(folder / CARD, card)
    config = HeadConfig.of(head, {name: file_sha256(folder / name) for name in verified})
    write_atomic(folder / CONFIG, config.to_json())
    if text is None:
        (folder / TEXT).unlink(missing_ok=True)  # of an earlier head in this folder
    return folder


def read_head(
    source: str | os.PathLike[str], *, revision: str | None, offline: bool, hub: HubSettings | None
) -> tuple[HeadConfig, ClassEmbeddings | None, dict[str, Tensor]]:
    """Return a head's configuration, class embeddings and tensors, from a folder or from the Hub.

    Raises:
        ModelError: A file is damaged, or the files do not fit together.
        HubError: The files could not be downloaded.
    """
    folder = as_path(source, "source", error=ModelError)
    if not folder.is_dir():
        settings = HubSettings.from_options(hub, offline=offline)
        folder = fetch_snapshot(
            os.fspath(source), (CONFIG, TEXT), any_of=(WEIGHTS,), revision=revision, settings=settings
        )
    elif revision is not None:
        raise ModelError(f"{folder} is a folder and has no revisions; leave revision={revision!r} out.")
    config = HeadConfig.read(folder / CONFIG)
    for name, digest in config.sha256.items():
        if not (folder / name).is_file() or file_sha256(folder / name) != digest:
            raise ModelError(f"{folder / name} is missing or damaged: its sha256 is not the one in {CONFIG}.")
    try:
        text = ClassEmbeddings.load(folder / TEXT) if config.text else None
        state = load_tensors((folder / WEIGHTS).read_bytes())
    except (OSError, SafetensorError, EmbeddingError, ValueError) as error:
        raise ModelError(f"{folder} does not hold a complete head: {error}") from error
    sizes = (config.num_classes, config.embed_dim)
    if text is not None and tuple(text.vectors.shape) != sizes:
        raise ModelError(f"{folder / TEXT} has the shape {tuple(text.vectors.shape)}, but {CONFIG} says {sizes}.")
    return config, text, state


def check_tensors(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise ModelError unless two state dicts have the same names, shapes and dtypes."""
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}
    wanted = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in expected.items()}
    for name in sorted({*found, *wanted}):
        if found.get(name) != wanted.get(name):
            raise ModelError(
                f"{WEIGHTS} does not fit {CONFIG}: {name!r} is {found.get(name, 'missing')}, expected "
                f"{wanted.get(name, 'no such tensor')}."
            )


def upload_head(head: Any, repo: str, *, card: bytes, private: bool, hub: HubSettings | None) -> str:
    """Upload a head's files as a model repository, and return the commit.

    Raises:
        HubError: The Hub refuses, or could not be reached.
    """
    settings = HubSettings.from_options(hub)
    check_upload(repo, settings)
    with tempfile.TemporaryDirectory() as folder:
        write_head(head, folder, card)
        return upload_folder(
            Path(folder),
            repo,
            files=sorted(os.listdir(folder)),
            message="Publish a text-guided head",
            repo_type="model",
            private=private,
            settings=settings,
        )


def _refuse_foreign(folder: Path) -> None:
    """Raise ModelError for a folder with files of these names that are not an earlier head's."""
    present = [name for name in (CONFIG, WEIGHTS, TEXT, CARD) if (folder / name).exists()]
    if not present:
        return
    try:
        record = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ModelError(
            f"{folder} holds {', '.join(present)}, which save_pretrained did not write; name another folder."
        )
