"""Find the files of an open_clip model, and the commit or digest that pins them."""

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
    """The files of a model on this machine, and what provenances record of them."""

    id: str
    revision: str
    config: dict[str, Any]  # arguments of open_clip's model class
    weights: Path
    weights_sha256: str
    tokenizer: str  # argument of open_clip's get_tokenizer


def find_source(model: str, *, revision: str | None, hub: HubSettings) -> Source:
    """Download a model if needed, and check its files. The arguments are those of :class:`OpenClipEncoder`."""
    if not isinstance(model, str):
        raise EmbeddingError(
            f'model must be a name such as "ViT-B-16/openai", "hf-hub:OWNER/NAME" or "local-dir:FOLDER"; '
            f"found {model!r:.60}."
        )
    if model.startswith(_LOCAL):
        return _source_in_folder(model, revision)
    repo, names, revision = _repository(model, revision)
    folder = fetch_snapshot(repo, (_CONFIG, *_TOKENIZER), any_of=names, revision=revision, settings=hub)
    names_repository = model.startswith(_HUB)
    config = _config(folder) if names_repository else known_to_open_clip(model)[0]
    weights = _weights(folder, names)
    pin = PINS.get(model)
    expected = pin.sha256 if pin is not None and revision == pin.revision else None
    # open_clip includes its own tokenizer; any other one is in the pinned snapshot.
    built_in_tokenizer = not names_repository and not config["text_cfg"].get("hf_tokenizer_name")
    return Source(
        id=model,
        revision=folder.name,
        config=config,
        weights=weights,
        weights_sha256=weights_digest(weights, expected=expected, encoder=model),
        tokenizer=model.rpartition("/")[0] if built_in_tokenizer else f"{_LOCAL}{folder}",
    )


def planned_source(model: str, *, revision: str | None, hub: HubSettings) -> tuple[str, str]:
    """Return the id and the revision of the source that :func:`find_source` would find, without its weights.

    The revision is "" if only the Hub knows it and the Hub does not answer.
    """
    if model.startswith(_LOCAL):
        source = _source_in_folder(model, revision)
        return source.id, source.revision
    repo, _, revision = _repository(model, revision)
    return model, newest_commit(repo, revision=revision, settings=hub)


def _repository(model: str, revision: str | None) -> tuple[str, Sequence[str], str | None]:
    """Return a model's repository, the possible names of its weights, and the revision: the given or the pinned one."""
    if model in PINS:  # without importing open_clip, so that a failed download is reported before that takes seconds
        pin = PINS[model]
        return pin.repo, _WEIGHTS[:1], revision or pin.revision
    if model.startswith(_HUB):
        return model.removeprefix(_HUB), _WEIGHTS, revision
    _, repo, name = known_to_open_clip(model)
    return repo, (name,) if name else _WEIGHTS, revision


def known_to_open_clip(model: str) -> tuple[dict[str, Any], str, str]:
    """Return an architecture's config, the repository of a tag's weights, and their file ("" for the usual names)."""
    import open_clip  # takes seconds and hundreds of megabytes

    architecture, _, tag = model.rpartition("/")
    if (architecture, tag) not in open_clip.list_pretrained():
        raise EmbeddingError(
            f'open_clip has no pretrained model {model!r}; expected ARCHITECTURE/TAG, such as "ViT-B-16/openai" '
            "(open_clip.list_pretrained() lists all)."
        )
    known: dict[str, Any] = open_clip.get_pretrained_cfg(architecture, tag)
    repo, _, file = str(known.get("hf_hub", "")).rpartition("/")
    if not repo:
        raise EmbeddingError(
            f"The weights of {model!r} are not on the Hub, so no commit pins them. Download them, convert them to "
            'safetensors, and pass "local-dir:FOLDER".'
        )
    config: dict[str, Any] = open_clip.get_model_config(architecture)
    # The tag decides: OpenAI's weights were trained with QuickGELU, unlike the architecture's default.
    config["quick_gelu"] = bool(known.get("quick_gelu", config.get("quick_gelu", False)))
    return config, repo, f"{Path(file).stem}.safetensors" if file else ""


def _source_in_folder(model: str, revision: str | None) -> Source:
    """Return the source of a model in a folder, which the digest of all its files pins."""
    folder = Path(model.removeprefix(_LOCAL))
    if revision is not None:
        raise EmbeddingError(f"{folder} is a folder, which its files pin; omit revision={revision!r}.")
    config, weights = _config(folder), _weights(folder, _WEIGHTS)
    # Config and tokenizer count too: they decide the activation function and what a token is.
    files = {_CONFIG, weights.name, *(path.name for pattern in _TOKENIZER for path in folder.glob(pattern))}
    digests = {name: file_sha256(folder / name) for name in sorted(files)}
    listing = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    return Source(
        id=f"{_LOCAL}{folder.resolve().name}",
        revision=f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}",
        config=config,
        weights=weights,
        weights_sha256=digests[weights.name],
        tokenizer=f"{_LOCAL}{folder}",
    )


def _config(folder: Path) -> dict[str, Any]:
    """Read the model's arguments from ``open_clip_config.json``."""
    path = folder / _CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
        if not isinstance(content, dict) or not {"embed_dim", "text_cfg", "vision_cfg"} <= set(content):
            raise KeyError("embed_dim, text_cfg, vision_cfg")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EmbeddingError(f"{path} is not the config of an open_clip model: {error!r}.") from error
    return content


def _weights(folder: Path, names: Sequence[str]) -> Path:
    """Return the first safetensors file that exists."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise EmbeddingError(f"{folder} has none of {', '.join(names)}; this library does not read pickled weights.")
