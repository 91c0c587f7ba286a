"""Weights in a file: safetensors, or pickle read without running what it holds."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from resilient_heads.errors import ModelError
from resilient_heads.inputs.error_context import explained

_WRAPPERS = ("state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema")
_PREFIXES = ("module.", "_orig_mod.")


def load_checkpoint(model: nn.Module, path: Path) -> None:
    """Load a file's weights into a model, every one of them.

    A file that ends in ``.safetensors`` is read as such, any other with ``torch.load(weights_only=True)``, which runs
    no code of the file. Training scripts' wrappers (``{"state_dict": ...}``) and the prefixes of DataParallel and
    compile are taken off.

    Raises:
        ModelError: The file cannot be read, or does not fit the model.
        FileNotFoundError: There is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}.")
    with explained(ModelError, f"{path} cannot be read as weights"):
        content = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, weights_only=True, map_location="cpu")
        )
    state = _state_of(content, path)
    expected = model.state_dict()
    missing, unexpected = sorted({*expected} - {*state}), sorted({*state} - {*expected})
    if missing or unexpected:
        parts = [f"lacks {_some(missing)}"] * bool(missing) + [f"has {_some(unexpected)} too many"] * bool(unexpected)
        raise ModelError(f"{path} does not fit {type(model).__name__}: it {' and '.join(parts)}.")
    with explained(ModelError, f"{path} does not fit {type(model).__name__}"):
        wrong = [name for name, tensor in state.items() if _shape(tensor) != _shape(expected[name])]
        if wrong:
            raise ModelError(
                f"{path} does not fit {type(model).__name__}: {wrong[0]!r} has the shape {_shape(state[wrong[0]])}, "
                f"expected {_shape(expected[wrong[0]])}. For another number of classes pass --classes."
            )
        model.load_state_dict(state, strict=True)


def _state_of(content: object, path: Path) -> dict[str, object]:
    """Return the state dict within what a file holds."""
    for name in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(name, str) for name in content):
        raise ModelError(f"{path} holds no state dict; save it with torch.save(model.state_dict(), path).")
    state = dict(content)
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _shape(value: object) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
