"""Refuse a checkpoint of another architecture before a single weight changes.

``nn.Module.load_state_dict`` copies module by module and raises at the end, when the backbone is overwritten already.
Its hooks do not learn whether the caller passed ``strict=False``. In both cases they therefore refuse a checkpoint with
another head, and accept a checkpoint without any head.
"""

import logging
import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from resilient_heads.checkpoints.parts import Part, choices, parts_of
from resilient_heads.checkpoints.read import read_weights
from resilient_heads.errors import ArgumentError, ModelError
from resilient_heads.evaluation import reason_of
from resilient_heads.files import as_path
from resilient_heads.heads.find.locate import find_heads
from resilient_heads.wrappers import require_module

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=nn.Module)

_PLAIN = {"weight", "bias"}
_SHOWN = 5


def guard_loading(model: nn.Module) -> None:
    """Make ``model.load_state_dict`` compare a state dict with the model's heads before it copies anything, in place.

    The check is a module-level function, so copies, pickles and EMA copies of the model keep it. On a model without
    heads it refuses the state dict of a wrapped model.
    """
    hooks = model._load_state_dict_pre_hooks.values()
    if not any(getattr(hook, "hook", hook) is _before_loading for hook in hooks):
        model.register_load_state_dict_pre_hook(_before_loading)  # type: ignore[no-untyped-call]


def load_checkpoint(model: M, checkpoint: Mapping[str, Any] | str | os.PathLike[str], *, part: str | None = None) -> M:
    """Load weights into any model in place, completely or not at all; an interrupt waits until all are loaded.

    The function finds the weights in what training scripts put around them: it opens mappings
    (``{"state_dict": ..., "optimizer": ...}``), and removes what DDP, FSDP, ``torch.compile``, Lightning and averages
    of weights add to names, if the names then are the model's. Tied tensors may be stored once. All names, shapes and
    dtypes are compared before anything is copied. ``load_state_dict`` of a wrapped model does this for its heads only.

    Args:
        model: The model, wrapped or not.
        checkpoint: A state dict, a mapping that contains one, or a file: safetensors, what ``torch.save`` wrote, or
            the ``.index.json`` of several files. No code in the file runs.
        part: Which weights to load from a checkpoint with several, such as ``"state_dict_ema"``: the keys that lead to
            them, and the prefix of their names, with dots.

    Returns:
        The same model.

    Raises:
        ArgumentError: ``model`` is not a torch.nn.Module, or ``checkpoint`` is neither a mapping nor a path.
        ModelError: A tensor is missing, unexpected, has another shape, or holds values too large for the model;
            several parts of the checkpoint fit; or the file holds no weights. The model is unchanged, except if the
            code of one of its modules refuses a value: the message says so.
        FileNotFoundError: There is no such file.

    >>> import torch, resilient_heads as rh
    >>> def build():
    ...     return rh.wrap_model(torch.nn.Sequential(torch.nn.Linear(8, 10)), embeddings="cifar10")
    >>> model = rh.load_checkpoint(build(), build().state_dict())
    """
    require_module(model)
    named = "The checkpoint"
    if not isinstance(checkpoint, Mapping):
        path = as_path(checkpoint, "checkpoint", error=ArgumentError)
        named, checkpoint = f"The checkpoint {path}", read_weights(path)
    chosen = _chosen_part(model, checkpoint, part, named)
    state = OrderedDict(chosen.tensors)
    vars(state)["_metadata"] = chosen.versions
    _copy_all(model, state, named)
    return model


def _copy_all(model: nn.Module, state: Mapping[str, Any], named: str) -> None:
    """Load a state dict that fits; an interrupt is raised only after the last tensor."""
    try:
        model.load_state_dict(state, strict=True)
    except Exception as error:  # a module's own code can raise any exception
        raise ModelError(
            f"{named} has the names and shapes of {type(model).__name__}, but a module refuses its values. Some "
            f"weights may be loaded: build the model again. Reason: {reason_of(error)}"
        ) from error
    except BaseException:
        model.load_state_dict(state, strict=True)
        raise


def _chosen_part(model: nn.Module, checkpoint: Mapping[Any, Any], part: str | None, named: str) -> Part:
    """Return the only part of a checkpoint that fits the model, or the one that the user names."""
    parts = parts_of(checkpoint, model.state_dict(keep_vars=True))
    if part is not None:
        labels = ", ".join(dict.fromkeys(repr(found.label) for found in parts)) or "none"
        parts = [found for found in parts if f"{found.label}.".startswith(f"{part}.") or found.label == part]
        if not parts:
            raise ModelError(f"{named} has no part {part!r} with weights of {type(model).__name__}; found {labels}.")
    if not parts:
        _compare_heads(model, checkpoint, "")
        keys = ", ".join(repr(key) for key in list(checkpoint)[:_SHOWN]) or "nothing"
        raise ModelError(
            f"{named} holds no state dict of {type(model).__name__}; found {keys}. Save it with "
            "torch.save(model.state_dict(), path)."
        )
    if not parts[0].fits:
        _refuse(model, parts[0], named)
    meant = choices(parts)
    if len(meant) > 1:
        labels = " or ".join(dict.fromkeys(repr(found.label) for found in meant))
        raise ModelError(
            f"{named} holds several weights of {type(model).__name__}, such as an average beside the last ones; name "
            f"those to load: part={labels} (--part on the command line)."
        )
    others = parts[0].others
    if others:
        logger.info("%s: %d other entries are not loaded: %s.", named, len(others), ", ".join(others[:_SHOWN]))
    return parts[0]


def _refuse(model: nn.Module, part: Part, named: str) -> NoReturn:
    """Raise ModelError for a part that does not fit: other heads first, since they change several names at once."""
    _compare_heads(model, {**part.tensors, **part.unexpected}, "")
    where = f" under {part.label!r}" if part.label else ""
    advice = "Wrap, fuse or unwrap the model as it was when it was saved, then load."
    if not part.missing and not part.unexpected:
        advice = (
            "If the number of classes differs, build the model with the checkpoint's (--classes on the command line)."
        )
    raise ModelError(
        f"{named} does not fit {type(model).__name__}; nothing was loaded. It has{where} {len(part.tensors)} of the "
        f"model's {len(model.state_dict())} names; {part.differences()}. {advice}"
    )


def _before_loading(
    model: nn.Module, state: Mapping[str, Any], prefix: str, metadata: Any, strict: bool, *lists: list[str]
) -> None:
    """Run first in ``load_state_dict``; an exception leaves it before anything is copied."""
    _compare_heads(model, state, prefix)


def _compare_heads(model: nn.Module, state: Mapping[str, Any], prefix: str) -> None:
    """Raise ModelError if a state dict does not hold the tensors that the model's heads need."""
    heads = find_heads(model)
    for name, head in heads.items():
        start = f"{prefix}{name}." if name else prefix
        saved = {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}
        _compare_head(head.state_dict(), saved, start)
    if heads:
        return
    present = model.state_dict(keep_vars=True)
    for key in state:
        start, is_projection, _ = key.rpartition("projection.weight")
        foreign = key.startswith(prefix) and key.removeprefix(prefix) not in present
        if is_projection and f"{start}latent.weight" in state and foreign:
            raise ModelError(
                f"The checkpoint has a text-guided head at {start[:-1]!r}, the model a plain classifier; nothing was "
                "loaded. Wrap the model first."
            )


def _compare_head(expected: dict[str, Tensor], saved: dict[str, Any], start: str) -> None:
    """Raise ModelError unless the tensors that the checkpoint has under the prefix ``start`` are those of a head."""
    unexpected = set(saved) - set(expected)
    if unexpected and unexpected <= _PLAIN:  # a partial loader may have added the model's tensors
        raise ModelError(
            f"The checkpoint has a plain classifier at {start[:-1]!r}, the model a text-guided head; nothing was "
            'loaded. Unwrap the model and load, then wrap it again: wrap_model(model, init="from_classifier") '
            "keeps the classifier's decisions. To load the backbone alone, leave the classifier's tensors out and "
            "pass strict=False."
        )
    if saved and set(saved) != set(expected):
        kind = "a fused" if any(key.startswith("layer.") for key in saved) else "another"
        raise ModelError(
            f"The checkpoint's tensors at {start[:-1]!r} are those of {kind} head ({', '.join(sorted(saved))}), the "
            f"model needs {', '.join(sorted(expected))}; nothing was loaded. Wrap and fuse the model as it was when it "
            "was saved."
        )
    for key, tensor in expected.items():
        if _has_other_shape(saved.get(key), tensor):
            raise ModelError(
                f"{start}{key} is {tuple(saved[key].shape)} in the checkpoint, {tuple(tensor.shape)} in the model; "
                "nothing was loaded. Wrap the model with the embeddings that it had when it was saved."
            )


def _has_other_shape(saved: object, expected: object) -> bool:
    """Whether two values are tensors of different shapes; a lazy parameter fits any shape."""
    if not isinstance(saved, Tensor) or not isinstance(expected, Tensor) or is_lazy(saved) or is_lazy(expected):
        return False
    return saved.shape != expected.shape
