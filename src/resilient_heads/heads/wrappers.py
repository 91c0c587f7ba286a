"""Refuse models and weights that a swapped layer would not work with: compiled, distributed, quantised, exported."""

import sys
from typing import Any, Literal

import torch
from torch import Tensor, nn

from resilient_heads.errors import ModelError
from resilient_heads.wrappers import is_exported, is_sharded

Action = Literal["wrap", "unwrap", "fuse", "protect", "unprotect"]


def refuse_wrappers(model: nn.Module, action: Action) -> None:
    """Raise ModelError if a wrapper around the model, or around a part of it, would miss the new layers.

    TorchScript and exported programs do not run the modules that they show. DDP and FSDP have registered the parameters
    of the old layer. A compiled module recompiles for new layers, but keeps the old parameters.
    """
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(f"The model is TorchScript or contains some; {action} it first, then trace it.")
        if is_exported(module):
            raise ModelError(
                f"The model is an exported program or contains one; {action} the original model, then export it."
            )
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise ModelError(
                "The model is wrapped in DistributedDataParallel, which only knows the old layer's parameters; "
                f"{action} the inner model (.module) first, then distribute it."
            )
        if is_sharded(module):
            raise ModelError(
                f"The model is sharded by FSDP; {action} it first, then shard it. If it was trained sharded, call "
                "get_model_state_dict with full_state_dict=True and load the result into the same model built "
                "without FSDP."
            )
        compiled = hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
        if action in ("wrap", "protect") and compiled:
            raise ModelError(
                f"The model is compiled or contains a compiled module; {action} it first, then compile it."
            )


def require_plain_tensor(tensor: Any, name: str, action: Action) -> None:
    """Raise ModelError unless the weight called ``name`` is an ordinary floating-point tensor."""
    if type(tensor) not in (Tensor, nn.Parameter) or not tensor.is_floating_point():
        raise ModelError(
            f"{name} is a {type(tensor).__name__} (quantised, sharded or computed); {action} first, then quantise or "
            "shard."
        )


def distribute_like(values: Tensor, target: Tensor) -> Tensor:
    """Return values distributed as a sharded target is; for an ordinary target, return them unchanged.

    Every process must call this with the same values.
    """
    loaded = sys.modules.get("torch.distributed.tensor")
    if loaded is None or not isinstance(target, loaded.DTensor) or isinstance(values, loaded.DTensor):
        return values
    local = values.to(device=target.device, dtype=target.dtype)
    sharded: Tensor = loaded.distribute_tensor(local, target.device_mesh, target.placements)
    return sharded
