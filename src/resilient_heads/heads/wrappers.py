"""What may hold a model so that a layer swapped within would escape it, or never be seen."""

import sys
from typing import Any, Literal

import torch
from torch import Tensor, nn

from resilient_heads.errors import ModelError

Action = Literal["wrap", "unwrap", "fuse", "protect", "unprotect"]


def refuse_held(model: nn.Module, action: Action) -> None:
    """Raise ModelError where something holds the layers that are to be swapped.

    TorchScript and exported programs do not run the modules they show; DDP and FSDP have registered the parameters of
    the old layer. A compiled module notices new layers by itself, but not that its parameters were to be others.

    Args:
        model: The model.
        action: What is to be done to it.
    """
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(f"The model is TorchScript, or holds some; {action} it first, then trace it.")
        if any(kind.__module__.startswith("torch.export") for kind in type(module).__mro__):
            raise ModelError(
                f"The model is an exported program, or holds one; {action} the model that it came from, then export it."
            )
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise ModelError(
                "The model is in DistributedDataParallel, which knows the old layer's parameters only; "
                f"{action} the model itself first (.module), then distribute it."
            )
        if _is_sharded(module):
            raise ModelError(
                f"The model is sharded by FSDP; {action} it first, then shard it. A model that was trained so: "
                "get_model_state_dict with full_state_dict=True, and load that into an equally built model without "
                "FSDP."
            )
        compiled = hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
        if action in ("wrap", "protect") and compiled:
            raise ModelError(f"The model is compiled, or holds a compiled module; {action} it first, then compile it.")


def require_plain_tensor(tensor: Any, name: str, action: Action) -> None:
    """Raise ModelError unless a weight is an ordinary floating-point tensor.

    Args:
        tensor: What the module has for a weight.
        name: The weight's name, for the message.
        action: What is to be done.
    """
    if type(tensor) not in (Tensor, nn.Parameter) or not tensor.is_floating_point():
        raise ModelError(
            f"{name} is a {type(tensor).__name__} (quantised, sharded or computed); {action} first, then quantise or "
            "shard."
        )


def like(values: Tensor, target: Tensor) -> Tensor:
    """Return values as a sharded target takes them: distributed as it is; for an ordinary target, as they are.

    Every process must call this with the same values.
    """
    loaded = sys.modules.get("torch.distributed.tensor")
    if loaded is None or not isinstance(target, loaded.DTensor) or isinstance(values, loaded.DTensor):
        return values
    local = values.to(device=target.device, dtype=target.dtype)
    sharded: Tensor = loaded.distribute_tensor(local, target.device_mesh, target.placements)
    return sharded


def _is_sharded(module: nn.Module) -> bool:
    """Whether FSDP, of either generation, holds a module; where it was never imported, it holds none."""
    loaded = sys.modules.get("torch.distributed.fsdp")
    kinds = ("FSDPModule", "FullyShardedDataParallel")
    return loaded is not None and any(isinstance(module, getattr(loaded, kind, ())) for kind in kinds)
