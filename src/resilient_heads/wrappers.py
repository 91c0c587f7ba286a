"""Recognise models in which other processes or devices take part, and models without values."""

import sys

from torch import nn

from resilient_heads.errors import FaultError, ModelError


def refuse_distributed(model: nn.Module) -> None:
    """Raise ModelError unless this process alone runs the model, and holds all of its values."""
    for name, module in model.named_modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise ModelError(_wrapped(name, "DistributedDataParallel, whose forward pass waits for other processes"))
        if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
            raise ModelError(_wrapped(name, "DataParallel, which runs copies of the layers on several GPUs"))
        if is_sharded(module):
            raise ModelError(
                "The model is sharded by FSDP, so each process holds a part of its weights. Call get_model_state_dict "
                "with full_state_dict=True, and load the result into the same model built without FSDP."
            )
    tensors = _loaded("torch.distributed.tensor", "DTensor")
    for name, parameter in model.named_parameters():
        if isinstance(parameter, tensors):
            raise ModelError(
                f"{name!r} is a DTensor, so each process holds a part of the model. Load full_tensor() of each weight "
                "into the same model built without tensor parallelism."
            )
        if parameter.is_meta:
            raise ModelError(f"{name!r} is on the meta device and has no values; load the weights first.")


def refuse_sharded(model: nn.Module) -> None:
    """Raise FaultError if FSDP holds the parameters of a model, so that a fault in one could be lost."""
    if any(is_sharded(module) for module in model.modules()):
        raise FaultError(
            "The model is sharded by FSDP, which replaces its parameters in every pass, so a fault in one could be "
            "lost. Inject into the model before it is sharded, or into an output."
        )


def refuse_broadcast(model: nn.Module, names: set[str]) -> None:
    """Raise FaultError if DistributedDataParallel overwrites one of the tensors of these names in every pass."""
    copied = {name for name, _ in model.named_buffers()} & names
    wrappers = [module for module in model.modules() if isinstance(module, nn.parallel.DistributedDataParallel)]
    if copied and any(wrapper.broadcast_buffers for wrapper in wrappers):
        raise FaultError(
            f"DistributedDataParallel copies the buffer {min(copied)!r} from the first process in every pass, so a "
            "fault in it could be lost. Inject into model.module, and run that."
        )


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP 1 or 2 holds a module."""
    return isinstance(module, _loaded("torch.distributed.fsdp", "FSDPModule", "FullyShardedDataParallel"))


def _wrapped(name: str, wrapper: str) -> str:
    """Return the error for a model, or its part of a name, inside a wrapper."""
    if not name:
        return f"The model is wrapped in {wrapper}; pass model.module."
    return f"{name!r} is wrapped in {wrapper}; put its .module in its place."


def _loaded(library: str, *names: str) -> tuple[type, ...]:
    """Return classes of a module; none if nobody has imported it, so that no object is of these classes."""
    loaded = sys.modules.get(library)
    return tuple(getattr(loaded, name) for name in names if hasattr(loaded, name))
