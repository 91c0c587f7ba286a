"""Put a module in another's stead."""

from torch import nn


def swap(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in another's stead, under every name that the model has for it."""
    places = [name for name, module in model.named_modules(remove_duplicate=False) if module is old]
    for name in places:
        parent_name, _, key = name.rpartition(".")
        setattr(model.get_submodule(parent_name), key, new)
