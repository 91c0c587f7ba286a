"""Checkpoints of another architecture are refused before a single weight changes.

``nn.Module.load_state_dict`` copies module by module and complains at the end, when the backbone has been overwritten.
It does not tell its hooks whether it was called with ``strict=False``, so a checkpoint with the wrong head is refused
either way, and one without any head passes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from resilient_heads.errors import ModelError
from resilient_heads.heads.find.locate import find_heads

_PLAIN = ("weight", "bias")


def guard_loading(model: nn.Module) -> None:
    """Let a model check a state dict against its heads before anything is copied.

    The check is a module-level function on the model, so copies, pickles and EMA copies keep it; on a model without
    heads it refuses what only a wrapped model can hold.
    """
    hooks = model._load_state_dict_pre_hooks.values()
    if not any(getattr(hook, "hook", hook) is _check_heads for hook in hooks):
        model.register_load_state_dict_pre_hook(_check_heads)  # type: ignore[no-untyped-call]


def load_checkpoint(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Load a state dict whole or not at all: names and shapes are compared before anything is copied.

    ``model.load_state_dict`` does this for the heads of wrapped models by itself; this function does it for every
    tensor of any model, a stock one that is given a wrapped model's checkpoint included.

    Args:
        model: The model, wrapped or not.
        state: What ``state_dict()`` of an equally built model returned.

    Raises:
        ModelError: A tensor is missing, left over, or of another shape; the model is as it was.
    """
    own = model.state_dict()
    _compare_heads(model, state, "")
    missing, left = [name for name in own if name not in state], [name for name in state if name not in own]
    shapes = [
        f"{name} is {tuple(state[name].shape)} there, {tuple(tensor.shape)} here"
        for name, tensor in own.items()
        if isinstance(tensor, Tensor) and isinstance(state.get(name), Tensor) and state[name].shape != tensor.shape
    ]
    faults = [f"missing: {', '.join(missing[:5])}"] if missing else []
    faults += [f"left over: {', '.join(left[:5])}"] if left else []
    faults += shapes[:5]
    if faults:
        raise ModelError(
            f"The checkpoint does not fit {type(model).__name__}; nothing was loaded. {'; '.join(faults)}. Wrap the "
            "model as it was when saved (or unwrap it) before loading."
        )
    model.load_state_dict(state, strict=True)


def _check_heads(
    model: nn.Module, state: Mapping[str, Any], prefix: str, metadata: Any, strict: bool, *lists: list[str]
) -> None:
    """Run first in ``load_state_dict``; an exception leaves it before anything is copied."""
    _compare_heads(model, state, prefix)


def _compare_heads(model: nn.Module, state: Mapping[str, Any], prefix: str) -> None:
    """Raise ModelError where a state dict does not hold what a model's heads need."""
    heads = find_heads(model)
    for name, head in heads.items():
        start = f"{prefix}{name}." if name else prefix
        own = head.state_dict()
        there = {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}
        foreign = set(there) - set(own)
        if foreign and foreign <= set(_PLAIN):  # a partial loader may have added the model's own tensors
            raise ModelError(
                f"The checkpoint holds a plain classifier at {start[:-1]!r}, the model a text-guided head; nothing was "
                'loaded. Unwrap the model and load, then wrap it again: wrap_model(model, init="from_classifier") '
                "keeps what the classifier decides. For the backbone alone, leave the classifier's tensors out and "
                "pass strict=False."
            )
        if there and set(there) != set(own):
            kind = "fused" if any(key.startswith("layer.") for key in there) else "other"
            raise ModelError(
                f"The checkpoint's tensors at {start[:-1]!r} are those of {'a' if kind == 'fused' else 'an'} {kind} "
                f"head ({', '.join(sorted(there))}), the model needs {', '.join(sorted(own))}; nothing was "
                "loaded. Wrap and fuse the model as it was when saved."
            )
        for key, tensor in own.items():
            other = there.get(key)
            if isinstance(other, Tensor) and not _lazy(tensor) and other.shape != tensor.shape:
                raise ModelError(
                    f"The checkpoint's {start}{key} is {tuple(other.shape)}, the head's {tuple(tensor.shape)}; nothing "
                    "was loaded. Wrap the model with the embeddings that it had when saved."
                )
    if not heads:
        for key in state:
            start, found, _ = key.rpartition("projection.weight")
            if found and key.startswith(prefix) and f"{start}latent.weight" in state and not _holds(model, key, prefix):
                raise ModelError(
                    f"The checkpoint holds a text-guided head at {start[:-1]!r}, the model a plain classifier; nothing "
                    "was loaded. Wrap the model first."
                )


def _holds(model: nn.Module, key: str, prefix: str) -> bool:
    """Whether a model has a tensor of that name itself."""
    return key.removeprefix(prefix) in model.state_dict(keep_vars=True)


def _lazy(tensor: Tensor) -> bool:
    """Whether a tensor has no shape yet."""
    return torch.nn.parameter.is_lazy(tensor)
