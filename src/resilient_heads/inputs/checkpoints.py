"""Weights in a file: safetensors, or a pickle that is read without running any code in it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from resilient_heads.errors import ModelError
from resilient_heads.inputs.error_context import error_context

_WRAPPERS = ("state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema")
_PREFIXES = ("module.", "_orig_mod.")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read the state dict in a checkpoint file.

    The function reads a file that ends in ``.safetensors`` as such, and every other file with
    ``torch.load(weights_only=True)``, which runs no code in the file. It unwraps the dictionaries of training scripts
    (``{"state_dict": ...}``) and removes the prefixes that DataParallel and ``torch.compile`` add to the names.

    Raises:
        ModelError: The file cannot be read, or holds no state dict.
        FileNotFoundError: There is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}.")
    with error_context(ModelError, f"{path} cannot be read as weights"):
        content = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, weights_only=True, map_location="cpu")
        )
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
