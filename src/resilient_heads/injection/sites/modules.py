"""Find a model's modules by the names that faults give."""

import torch
from torch import nn

from resilient_heads.errors import FaultError
from resilient_heads.injection.faults.fault import Fault


def module_named(model: nn.Module, layer: str) -> nn.Module:
    """Return a submodule by name, or list the names that exist."""
    modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    if not layer or layer not in modules:
        raise FaultError(f"{type(model).__name__} has no layer named {layer!r}; its layers are: {_leaves(modules)}.")
    return modules[layer]


def refuse_scripts(model: nn.Module) -> None:
    """Refuse TorchScript, which runs without the hooks of its inner modules."""
    if isinstance(model, torch.jit.ScriptModule):
        raise FaultError(
            f"{type(model).__name__} is TorchScript, which runs past the hooks that faults in outputs and inputs need. "
            "Inject into the model before it is scripted or traced."
        )


def leaves_matching(model: nn.Module, fault: Fault) -> list[str]:
    """Return the layers without children that a fault means: its own, or what its pattern matches."""
    if not fault.is_pattern:
        return [fault.layer]
    modules: dict[str, nn.Module] = dict(model.named_modules())
    found = fault.matches(name for name, module in modules.items() if name and not list(module.children()))
    if not found:
        raise FaultError(
            f"No layer of {type(model).__name__} matches {fault.layer!r}; its layers are: {_leaves(modules)}."
        )
    return found


def _leaves(modules: dict[str, nn.Module]) -> str:
    """List the modules without children, the first of them."""
    names = [name for name, module in modules.items() if name and not list(module.children())]
    return ", ".join(names[:40]) + (f" and {len(names) - 40} more" if len(names) > 40 else "")
