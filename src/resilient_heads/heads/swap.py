"""Put a module in another's stead."""

from torch import nn

from resilient_heads.errors import ModelError


def swap(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in another's stead, under every name that the model has for it."""
    places = [name for name, module in model.named_modules(remove_duplicate=False) if module is old]
    for name in places:
        parent_name, _, key = name.rpartition(".")
        setattr(model.get_submodule(parent_name), key, new)


def require_uncompiled(model: nn.Module, what: str) -> None:
    """Raise ModelError where something compiled, traced or distributed would not follow a swap.

    Args:
        model: The model.
        what: What to do before compiling, as in "wrap it first".
    """
    modules = list(model.modules())
    if any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in modules):
        raise ModelError(f"The model is compiled, or holds a compiled module; {what}, then compile it.")
    if any(isinstance(module, nn.parallel.DistributedDataParallel) for module in modules):
        raise ModelError(f"The model is in DistributedDataParallel; {what}, then distribute it.")
