"""Where the weights of an open_clip model lie, and what pins them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resilient_heads.errors import EmbeddingError
from resilient_heads.files import file_sha256
from resilient_heads.text.encoders.pins import PINS, weights_digest
from resilient_heads.text.hub.settings import HubSettings
from resilient_heads.text.hub.snapshots import fetch_snapshot, newest_commit

_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors")
_CONFIG = "open_clip_config.json"
_TOKENIZER = ("*token*.json", "vocab.*", "merges.txt", "*.model")
_LOCAL, _HUB = "local-dir:", "hf-hub:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A model on this machine.

    Attributes:
        id: Name under which provenance records it.
        revision: Commit, or ``"sha256:..."`` over the files of a folder.
        config: Arguments of open_clip's model.
        weights: The safetensors file.
        weights_sha256: Its hex digest.
        tokenizer: What open_clip's ``get_tokenizer`` takes.
    """

    id: str
    revision: str
    config: dict[str, Any]
    weights: Path
    weights_sha256: str
    tokenizer: str


def find_source(model: str, *, revision: str | None, hub: HubSettings) -> Source:
    """Bring a model to this machine and check it.

    Args:
        model: ``"ARCHITECTURE/TAG"``, ``"hf-hub:OWNER/NAME"`` or ``"local-dir:FOLDER"``.
        revision: Commit on the Hub; None takes the one that is pinned here, or else the newest.
        hub: How the Hub is reached.

    Raises:
        EmbeddingError: open_clip does not know the model, or the files are not whole, or not the pinned ones.
        HubError: The files cannot be had from the Hub.
    """
    _require_name(model)
    if model.startswith(_LOCAL):
        return _in_folder(model, revision)
    expected: str | None = None
    names: Sequence[str] = _WEIGHTS
    if model in PINS:
        pin = PINS[model]
        repo, names, revision = pin.repo, _WEIGHTS[:1], revision or pin.revision
        expected = pin.sha256 if revision == pin.revision else None
    elif model.startswith(_HUB):
        repo = model.removeprefix(_HUB)
    else:
        _, repo, name = known_to_open_clip(model)
        names = (name,) if name else names
    folder = fetch_snapshot(repo, (_CONFIG, *_TOKENIZER), any_of=names, revision=revision, settings=hub)
    # Only now, so that weights which cannot be had are told before open_clip's import has cost seconds.
    config = None if model.startswith(_HUB) else known_to_open_clip(model)[0]
    weights = _weights(folder, names)
    own_words = config is not None and not config["text_cfg"].get("hf_tokenizer_name")
    return Source(
        id=model,
        revision=folder.name,
        config=_config(folder) if config is None else config,
        weights=weights,
        weights_sha256=weights_digest(weights, expected=expected, what=model),
        # Words of its own vocabulary come with open_clip; any other tokenizer lies in the pinned snapshot.
        tokenizer=model.rpartition("/")[0] if own_words else f"{_LOCAL}{folder}",
    )


def planned_source(model: str, *, revision: str | None, hub: HubSettings) -> tuple[str, str]:
    """Return the :class:`Source`'s id and revision that :func:`find_source` would find, without its weights.

    Returns:
        The revision is empty where only the Hub knows it and cannot be asked.
    """
    if model.startswith(_LOCAL):
        found = _in_folder(model, revision)
        return found.id, found.revision
    if revision is None and model in PINS:
        return model, PINS[model].revision
    repo = model.removeprefix(_HUB) if model.startswith(_HUB) else known_to_open_clip(model)[1]
    return model, newest_commit(repo, revision=revision, settings=hub)


def known_to_open_clip(model: str) -> tuple[dict[str, Any], str, str]:
    """Return an architecture's config, the repository of a tag's weights, and their file ("" for the usual names).

    Raises:
        EmbeddingError: open_clip lists no such model, or its weights are not on the Hub.
    """
    import open_clip  # costs seconds and hundreds of megabytes, so only now

    architecture, _, tag = model.rpartition("/")
    if (architecture, tag) not in open_clip.list_pretrained():
        raise EmbeddingError(
            f'open_clip has no pretrained model {model!r}; expected ARCHITECTURE/TAG, such as "ViT-B-16/openai" '
            "(open_clip.list_pretrained() names all)."
        )
    known: dict[str, Any] = open_clip.get_pretrained_cfg(architecture, tag)
    repo, _, file = str(known.get("hf_hub", "")).rpartition("/")
    if not repo:
        raise EmbeddingError(
            f"The weights of {model!r} are not on the Hub, so they cannot be pinned; download them, convert them to "
            'safetensors, and pass "local-dir:FOLDER".'
        )
    config: dict[str, Any] = open_clip.get_model_config(architecture)
    # The tag decides: openai's weights were trained with QuickGELU, which the bare architecture's config denies.
    config["quick_gelu"] = bool(known.get("quick_gelu", config.get("quick_gelu", False)))
    return config, repo, f"{Path(file).stem}.safetensors" if file else ""


def _require_name(model: str) -> None:
    """Refuse what is no name."""
    if not isinstance(model, str):
        raise EmbeddingError(
            f'An open_clip model is named by a string, "ViT-B-16/openai", "hf-hub:OWNER/NAME" or "local-dir:FOLDER"; '
            f"found {model!r:.60}."
        )


def _in_folder(model: str, revision: str | None) -> Source:
    """Describe a model in a folder; its files pin it."""
    folder = Path(model.removeprefix(_LOCAL))
    if revision is not None:
        raise EmbeddingError(f"{folder} is a folder, which its files pin; leave revision={revision!r} out.")
    config, weights = _config(folder), _weights(folder, _WEIGHTS)
    digest = hashlib.sha256()
    # Not the weights alone: the config says which activation they were trained with, the tokenizer what a word is.
    files = {_CONFIG, weights.name, *(path.name for pattern in _TOKENIZER for path in folder.glob(pattern))}
    digests = {name: file_sha256(folder / name) for name in files}
    for name, own in sorted(digests.items()):
        digest.update(f"{own}  {name}\n".encode())
    return Source(
        id=f"{_LOCAL}{folder.resolve().name}",
        revision=f"sha256:{digest.hexdigest()}",
        config=config,
        weights=weights,
        weights_sha256=digests[weights.name],
        tokenizer=f"{_LOCAL}{folder}",
    )


def _config(folder: Path) -> dict[str, Any]:
    """Read ``open_clip_config.json``."""
    path = folder / _CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
        if not isinstance(content, dict) or not {"embed_dim", "text_cfg", "vision_cfg"} <= set(content):
            raise KeyError("embed_dim, text_cfg, vision_cfg")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EmbeddingError(f"{path} is no config of an open_clip model: {error!r}.") from error
    return content


def _weights(folder: Path, names: Sequence[str]) -> Path:
    """Find the safetensors file."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise EmbeddingError(
        f"{folder} has none of {', '.join(names)}; pickled weights are not read and missing ones never made up."
    )
