"""Replace one module of a model by another."""

from torch import nn


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace a module of a model in place, under every name that the model has for it."""
    places = [name for name, module in model.named_modules(remove_duplicate=False) if module is old]
    for name in places:
        parent_name, _, key = name.rpartition(".")
        setattr(model.get_submodule(parent_name), key, new)
