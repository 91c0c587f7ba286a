"""Recognise what a model is wrapped in: models whose layers faults do not reach, and models with values elsewhere."""

import sys

import torch
from torch import Tensor, nn

from resilient_heads.checks import instance_of
from resilient_heads.errors import ArgumentError, FaultError, ModelError


def require_module(model: object) -> None:
    """Raise ArgumentError unless ``model`` is a torch.nn.Module."""
    if isinstance(model, type):
        raise ArgumentError(f"model must be a Module, found the class; pass an object, {model.__name__}(...).")
    if not isinstance(model, nn.Module) and (callable(model) or hasattr(model, "run") or hasattr(model, "module")):
        raise ArgumentError(
            f"model must be a Module, found {type(model).__name__}: no fault reaches its layers. Pass the "
            "torch.nn.Module that it calls or was made from."
        )
    instance_of("model", model, nn.Module, example="torchvision.models.resnet18()")


def refuse_opaque(model: nn.Module) -> None:
    """Raise an error unless ``model`` is a torch.nn.Module that runs its layers as modules."""
    require_module(model)
    if hasattr(model, "_orig_mod"):
        raise ModelError("The model is compiled, so no fault reaches its layers; pass model._orig_mod.")
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError("The model is TorchScript, so no fault reaches its layers; pass the module it was made from.")
    if is_exported(model) and isinstance(model, torch.fx.GraphModule):
        raise ModelError(
            "The model is an exported program (torch.export), so no fault reaches its layers; pass the module it was "
            "made from."
        )


def is_exported(module: nn.Module) -> bool:
    """Whether torch.export made a module."""
    return any(kind.__module__.startswith("torch.export") for kind in type(module).__mro__)


def offloaded_value(model: nn.Module, name: str) -> Tensor | None:
    """Return a parameter or buffer that accelerate keeps elsewhere between passes; None if it keeps no such tensor."""
    path = name.split(".")
    for depth in range(len(path)):
        hook = getattr(model.get_submodule(".".join(path[:depth])), "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):
            weights = getattr(one, "weights_map", None) or {}
            if ".".join(path[depth:]) in weights:
                value: Tensor = weights[".".join(path[depth:])]
                return value
    return None


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
        if parameter.is_meta and offloaded_value(model, name) is None:
            raise ModelError(f"{name!r} is on the meta device and has no values; load the weights first.")


def refuse_sharded(model: nn.Module) -> None:
    """Raise FaultError if FSDP holds the parameters of a model, so that a fault in one could be lost."""
    sharded = _loaded("torch.distributed.fsdp", "FSDPModule", "FullyShardedDataParallel")
    if sharded and any(isinstance(module, sharded) for module in model.modules()):
        raise FaultError(
            "The model is sharded by FSDP, which replaces its parameters in every pass, so a fault in one could be "
            "lost. Inject into the model before it is sharded, or into an output."
        )


def refuse_broadcast(model: nn.Module, names: set[str]) -> None:
    """Raise FaultError if DistributedDataParallel overwrites one of the tensors of these names in every pass."""
    wrappers = [module for module in model.modules() if isinstance(module, nn.parallel.DistributedDataParallel)]
    copied = {name for name, _ in model.named_buffers()} & names if wrappers else set()
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
