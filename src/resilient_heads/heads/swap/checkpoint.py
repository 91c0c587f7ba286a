"""Refuse a checkpoint of another architecture before a single weight changes.

``nn.Module.load_state_dict`` copies module by module and raises at the end, when the backbone is overwritten already.
Its hooks do not learn whether the caller passed ``strict=False``. In both cases they therefore refuse a checkpoint with
another head, and accept a checkpoint without any head.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from resilient_heads.errors import ModelError
from resilient_heads.heads.find.locate import find_heads

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


def load_checkpoint(model: M, state: Mapping[str, Any]) -> M:
    """Load a state dict into any model in place, completely or not at all.

    All names and shapes are compared before anything is copied. ``load_state_dict`` of a wrapped model does this for
    its heads only.

    Args:
        model: The model, wrapped or not.
        state: What ``state_dict()`` of an identically built model returned.

    Returns:
        The same model.

    Raises:
        ModelError: A tensor is missing, unexpected, or has another shape; the model is unchanged.

    >>> import torch, resilient_heads as rh
    >>> def build():
    ...     return rh.wrap_model(torch.nn.Sequential(torch.nn.Linear(8, 10)), embeddings="cifar10")
    >>> model = rh.load_checkpoint(build(), build().state_dict())
    """
    expected = model.state_dict()
    _compare_heads(model, state, "")
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    shapes = [
        f"{name} is {tuple(state[name].shape)} in the checkpoint, {tuple(tensor.shape)} in the model"
        for name, tensor in expected.items()
        if _has_other_shape(state.get(name), tensor)
    ]
    differences = [f"missing: {', '.join(missing[:_SHOWN])}"] if missing else []
    differences += [f"unexpected: {', '.join(unexpected[:_SHOWN])}"] if unexpected else []
    differences += shapes[:_SHOWN]
    if differences:
        raise ModelError(
            f"The checkpoint does not fit {type(model).__name__}; nothing was loaded. {'; '.join(differences)}. Wrap, "
            "fuse or unwrap the model as it was when it was saved, then load."
        )
    model.load_state_dict(state, strict=True)
    return model


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
