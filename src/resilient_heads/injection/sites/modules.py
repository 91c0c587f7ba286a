"""Find a model's modules by the names that faults give."""

import difflib

import torch
from torch import nn

from resilient_heads.errors import FaultError
from resilient_heads.injection.faults.fault import Fault

_LISTED = 8
"""Names that an error lists."""


def module_named(model: nn.Module, layer: str) -> nn.Module:
    """Return a submodule by name, or list the names that exist."""
    modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    if not layer or layer not in modules:
        raise FaultError(f"{type(model).__name__} has no layer named {layer!r}; {_leaves(modules, layer)}.")
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
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if not fault.is_pattern or fault.layer in modules:
        return [fault.layer]
    found = fault.matches(name for name, module in modules.items() if name and not list(module.children()))
    if not found:
        raise FaultError(
            f"No layer of {type(model).__name__} matches {fault.layer!r}; {_leaves(modules, fault.layer)}."
        )
    return found


def _leaves(modules: dict[str, nn.Module], wanted: str) -> str:
    """Say which modules without children there are: all of them, or those with the nearest names."""
    names = [name for name, module in modules.items() if name and not list(module.children())]
    if len(names) <= _LISTED:
        return f"its layers are: {', '.join(names)}"
    nearest = difflib.get_close_matches(wanted, [name for name in modules if name], n=_LISTED, cutoff=0.4)
    if not nearest:
        return f"its {len(names)} layers are named such as {', '.join(names[:_LISTED])}"
    return f"of its {len(names)} layers, the nearest names are: {', '.join(nearest)}"
