"""Recognise models that other processes or devices take part in, and models without values."""

import sys

from torch import nn

from resilient_heads.errors import ModelError


def refuse_distributed(model: nn.Module) -> None:
    """Raise ModelError unless this process alone runs the model, and holds all of its values."""
    for name, module in model.named_modules():
        where = f"at {name!r}; replace it by its .module" if name else "itself; pass model.module"
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise ModelError(f"DistributedDataParallel, whose forward pass waits for other processes, is {where}.")
        if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
            raise ModelError(f"DataParallel over several GPUs, which runs copies of the layers, is {where}.")
        if is_sharded(module):
            raise ModelError(
                "The model is sharded by FSDP, so each process holds a part of its weights. Call get_model_state_dict "
                "with full_state_dict=True, and load the result into the same model built without FSDP."
            )
    tensors = loaded_class("torch.distributed.tensor", "DTensor")
    for name, parameter in model.named_parameters():
        if isinstance(parameter, tensors):
            raise ModelError(
                f"{name!r} is a DTensor, so each process holds a part of the model. Load full_tensor() of each weight "
                "into the same model built without tensor parallelism."
            )
        if parameter.is_meta:
            raise ModelError(f"{name!r} is on the meta device and has no values; load the weights first.")


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP 1 or 2 holds a module."""
    return isinstance(module, loaded_class("torch.distributed.fsdp", "FSDPModule", "FullyShardedDataParallel"))


def loaded_class(library: str, *names: str) -> tuple[type, ...]:
    """Return classes of a module; none if nobody has imported it, so that no object is of these classes."""
    loaded = sys.modules.get(library)
    return tuple(getattr(loaded, name) for name in names if hasattr(loaded, name))
