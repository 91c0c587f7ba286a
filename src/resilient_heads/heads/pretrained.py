"""Heads on disk and on the Hub: config.json, model.safetensors, a model card; loaded strictly or not at all."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from resilient_heads.errors import EmbeddingError, ModelError, ResilientHeadsError
from resilient_heads.files import as_path, file_sha256, write_atomic
from resilient_heads.heads.find.locate import find_heads
from resilient_heads.heads.protection.options import Protection
from resilient_heads.heads.text_guided import TextGuidedHead
from resilient_heads.text.embeddings import ClassEmbeddings
from resilient_heads.text.hub.settings import HubSettings
from resilient_heads.text.hub.snapshots import fetch_snapshot
from resilient_heads.text.hub.upload import check_upload, upload_folder

_CONFIG, _WEIGHTS, _TEXT, _CARD = "config.json", "model.safetensors", "embeddings.safetensors", "README.md"
_FORMAT = "resilient_heads.head/1"
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


class Measured(Protocol):
    """A campaign's result, as far as a model card is concerned."""

    def summary(self) -> Any:
        """Return figures with ``protocol``, ``trials``, ``accuracy`` and ``scopes``."""
        ...


def save_pretrained(
    model: nn.Module, folder: str | os.PathLike[str], *, campaign: Measured | None = None, licence: str = "apache-2.0"
) -> Path:
    """Write a head, or the head of a wrapped model, as config.json, model.safetensors and a model card.

    Args:
        model: A :class:`TextGuidedHead`, or a model that :func:`wrap_model` gave one.
        folder: Where to write; each file is written whole or not at all. Files of these names that are of no earlier
            head are never replaced.
        campaign: What :func:`run_campaign` measured on the model; its figures go into the card.
        licence: Licence identifier for the card.

    Returns:
        The folder.

    Raises:
        ModelError: The model has no such head, or several, or its ``in_features`` are still open; ``campaign`` is no
            result; or the folder holds files of something else. Nothing has been written then.
    """
    folder, head = as_path(folder, "folder", error=ModelError), _head_of(model)
    if head.in_features is None:
        raise ModelError("The head's in_features are still open; wrap a model with it before saving.")
    config: dict[str, Any] = {
        "format": _FORMAT,
        "in_features": head.in_features,
        "num_classes": head.num_classes,
        "embed_dim": head.embed_dim,
        "normalize": head.normalize,
        "bias": head.latent.bias is not None,
        "conv": head.is_conv,
        "dtype": str(head.projection.weight.dtype).removeprefix("torch."),
        "class_names": None if head.class_names is None else list(head.class_names),
        "text": head.text is not None,
        "protection": None if head.protection is None else asdict(head.protection),
    }
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
    card, weights = _card(head, campaign, licence).encode(), save_tensors(state, {"format": "pt"})
    _refuse_foreign(folder)
    if head.text is not None:
        head.text.save(folder / _TEXT)
    write_atomic(folder / _WEIGHTS, weights)
    written = (_WEIGHTS,) if head.text is None else (_WEIGHTS, _TEXT)
    config["sha256"] = {name: file_sha256(folder / name) for name in written}
    write_atomic(folder / _CARD, card)
    write_atomic(folder / _CONFIG, (json.dumps(config, indent=2) + "\n").encode())
    if head.text is None:
        (folder / _TEXT).unlink(missing_ok=True)  # of an earlier head in this folder
    return folder


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder with files that would be replaced and are of no head of ours."""
    present = [name for name in (_CONFIG, _WEIGHTS, _TEXT, _CARD) if (folder / name).exists()]
    if not present:
        return
    try:
        record = json.loads((folder / _CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise ModelError(
            f"{folder} holds {', '.join(present)}, which no text-guided head put there; name another folder."
        )


def from_pretrained(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    offline: bool = False,
    hub: HubSettings | None = None,
) -> TextGuidedHead:
    """Load a head that :func:`save_pretrained` wrote; put it into a model with ``wrap_model(model, head=head)``.

    Args:
        source: Folder, or repository ``"owner/name"`` on the Hub.
        revision: Commit on the Hub; None takes the newest and logs which that is.
        offline: Never touch the network.
        hub: How the Hub is reached.

    Raises:
        ModelError: The files are damaged, or do not fit together: a tensor too many, too few, or of another shape.
        HubError: The files cannot be had from the Hub.
    """
    folder = as_path(source, "source", error=ModelError)
    if folder.is_dir():
        if revision is not None:
            raise ModelError(f"{folder} is a folder and has no revisions; leave revision={revision!r} out.")
    else:
        settings = HubSettings.from_options(hub, offline=offline)
        folder = fetch_snapshot(
            os.fspath(source), (_CONFIG, _TEXT), any_of=(_WEIGHTS,), revision=revision, settings=settings
        )
    config = _Config.read(folder / _CONFIG)
    for name, expected_digest in config.sha256.items():
        if not (folder / name).is_file() or file_sha256(folder / name) != expected_digest:
            raise ModelError(f"{folder / name} is missing or damaged: its sha256 is not the one in {_CONFIG}.")
    try:
        text = ClassEmbeddings.load(folder / _TEXT) if config.text else None
        state = load_tensors((folder / _WEIGHTS).read_bytes())
    except (OSError, SafetensorError, EmbeddingError, ValueError) as error:
        raise ModelError(f"{folder} holds no whole head: {error}") from error
    if text is not None and tuple(text.vectors.shape) != (config.num_classes, config.embed_dim):
        raise ModelError(f"{folder}: {_TEXT} holds {tuple(text.vectors.shape)}, {_CONFIG} says otherwise.")
    # Compared before anything of these sizes is made: a damaged config may name huge ones.
    sizes = {"latent.weight": config.in_features * config.embed_dim}
    sizes["projection.weight"] = config.embed_dim * config.num_classes
    for name, size in sizes.items():
        if name in state and state[name].numel() != size:
            raise ModelError(f"{folder / _WEIGHTS} does not fit {_CONFIG}: {name!r} is {tuple(state[name].shape)}.")
        if name not in state:
            raise ModelError(f"{folder / _WEIGHTS} does not fit {_CONFIG}: {name!r} is missing.")
    head = TextGuidedHead(
        config.in_features,
        text if text is not None else (config.num_classes, config.embed_dim),
        normalize=config.normalize,
        bias=config.bias,
        conv=config.conv,
        protection=config.protection,
        dtype=config.dtype,
    )
    head.class_names = config.class_names
    expected = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in head.state_dict().items()}
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}
    if found != expected:
        wrong = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        raise ModelError(
            f"{folder / _WEIGHTS} does not fit {_CONFIG}: {wrong[0]!r} is {found.get(wrong[0], 'missing')}, "
            f"expected {expected.get(wrong[0], 'no such tensor')}."
        )
    head.load_state_dict(state, strict=True)
    return head


def push_to_hub(
    model: nn.Module,
    repo: str,
    folder: str | os.PathLike[str],
    *,
    campaign: Measured | None = None,
    licence: str = "apache-2.0",
    private: bool = False,
    hub: HubSettings | None = None,
) -> str:
    """Save a head, or the head of a wrapped model, and upload it as a model repository.

    Args:
        model: As for :func:`save_pretrained`.
        repo: ``"owner/name"``; made if it does not exist.
        folder: Where the files are written before they are uploaded; they stay there.
        campaign: What :func:`run_campaign` measured on the model.
        licence: Licence identifier for the card.
        private: Make a new repository private.
        hub: How the Hub is reached.

    Returns:
        The commit, which pins it: ``from_pretrained(repo, revision=commit)``.

    Raises:
        ModelError: As :func:`save_pretrained`.
        HubError: The Hub refuses or cannot be reached.
    """
    settings = HubSettings.from_options(hub)
    check_upload(repo, settings)
    folder = save_pretrained(model, folder, campaign=campaign, licence=licence)
    write_atomic(folder / _CARD, _card(_head_of(model), campaign, licence, repo=repo).encode())
    files = [name for name in (_CONFIG, _WEIGHTS, _TEXT, _CARD) if (folder / name).is_file()]
    return upload_folder(
        folder,
        repo,
        files=files,
        message="Publish a text-guided head",
        repo_type="model",
        private=private,
        settings=settings,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Config:
    """The content of config.json, checked."""

    in_features: int
    num_classes: int
    embed_dim: int
    normalize: bool
    bias: bool
    conv: bool
    dtype: torch.dtype
    class_names: tuple[str, ...] | None
    text: bool
    protection: Protection | None
    sha256: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> "_Config":
        """Read and check the file."""
        try:
            record: Mapping[str, Any] = json.loads(path.read_bytes())
            if record["format"] != _FORMAT:
                raise ValueError(f"format {record['format']!r}, expected {_FORMAT!r}")
            sizes = {name: record[name] for name in ("in_features", "num_classes", "embed_dim")}
            flags = {name: record[name] for name in ("normalize", "bias", "conv", "text")}
            for name, size in sizes.items():
                if type(size) is not int or not 0 < size < 2**24:
                    raise ValueError(f"{name} is {size!r}")
            for name, flag in flags.items():
                if type(flag) is not bool:
                    raise ValueError(f"{name} is {flag!r}")
            files = {_WEIGHTS, _TEXT} if flags["text"] else {_WEIGHTS}
            if not isinstance(record["sha256"], dict) or set(record["sha256"]) != files:
                raise ValueError(f"sha256 must name {sorted(files)}")
            names = record["class_names"]
            if names is not None and not isinstance(names, list):
                raise ValueError("class_names must be a list")
            if names is not None and (len(names) != sizes["num_classes"] or not all(isinstance(n, str) for n in names)):
                raise ValueError("class_names do not fit num_classes")
            return cls(
                in_features=sizes["in_features"],
                num_classes=sizes["num_classes"],
                embed_dim=sizes["embed_dim"],
                normalize=flags["normalize"],
                bias=flags["bias"],
                conv=flags["conv"],
                text=flags["text"],
                protection=None if record.get("protection") is None else Protection(**record["protection"]),
                sha256={name: str(digest) for name, digest in record["sha256"].items()},
                dtype=_DTYPES[record["dtype"]],
                class_names=None if names is None else tuple(names),
            )
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ModelError(f"{path} is no config of a text-guided head: {error!r}.") from error


def _head_of(model: nn.Module) -> TextGuidedHead:
    """Return the one text-guided head of a model."""
    heads = [head for head in find_heads(model).values() if isinstance(head, TextGuidedHead)]
    if len(heads) != 1:
        raise ModelError(
            f"{type(model).__name__} has {len(heads)} unfused text-guided heads, expected one; save before "
            "fuse(model), or name the head itself: save_pretrained(model.fc, folder)."
        )
    return heads[0]


def _card(head: TextGuidedHead, campaign: Measured | None, licence: str, *, repo: str | None = None) -> str:
    """Return the model card; ``repo`` is where it is published, None while it lies in a folder."""
    place = "path/to/this/folder" if repo is None else repo
    pin = (
        "These files have not been published; the path is that of the folder that holds them."
        if repo is None
        else "A card cannot name the commit that it is part of. The repository's history lists it; pass it as "
        "`revision=`, and the same bits load for ever."
    )
    made = head.provenance
    text = "random rows" if made is None else f"`{made.encoder}` ({made.encoder_revision or 'revision not recorded'})"
    kind = "cosine" if head.normalize else "linear"
    measured = "Not measured: no campaign result was passed." if campaign is None else _figures(campaign)
    return f"""---
license: {licence}
library_name: resilient-heads
tags:
- text-guided-classifier
- resilient-heads
---

# Text-guided head

A {kind} classifier head from {head.in_features} features to {head.num_classes} classes through {head.embed_dim} \
dimensions; its rows started from {text}.

```python
import resilient_heads as rh

head = rh.from_pretrained("{place}")
model = rh.wrap_model(model, head=head)
```

{pin}

## Measured resilience

{measured}
"""


def _figures(campaign: Measured) -> str:
    """Return a table of a campaign's figures."""
    if isinstance(campaign, type) or not callable(getattr(campaign, "summary", None)):
        raise ModelError(f"campaign must be what run_campaign returned, found {campaign!r:.60}.")
    try:
        return _table(campaign.summary())
    except ResilientHeadsError:
        raise
    except Exception as error:  # whatever brings figures may pass for a result, and fail as it likes
        raise ModelError(
            f"campaign= gave no figures for the card: {type(campaign).__name__}.summary() failed with {error!r:.200}. "
            "Pass what run_campaign returned, or leave campaign= out; nothing has been written."
        ) from error


def _table(summary: Any) -> str:
    """Return the figures of a campaign's summary as Markdown."""
    lines = [
        f"{summary.trials} trials, protocol `{summary.protocol.name}`, {summary.images} images, fault-free accuracy "
        f"{summary.accuracy.value:.2%}.",
        "",
        f"| one flip in | silent data corruption ({summary.level:.0%} interval) | not finite or detected |",
        "|---|---|---|",
    ]
    for name, scope in summary.scopes.items():
        sdc, due = scope.bit_weighted.sdc, scope.bit_weighted.due
        lines.append(f"| {name} | {sdc.value:.4%} ({sdc.low:.4%} to {sdc.high:.4%}) | {due.value:.4%} |")
    return "\n".join(lines)
