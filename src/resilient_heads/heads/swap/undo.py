"""Change a model completely or not at all, even if an error or an interrupt stops the change at any line."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.parameter import is_lazy

Undo = Callable[[], None]


@contextmanager
def all_or_nothing(model: nn.Module, *rewritten: nn.Module) -> Iterator[None]:
    """Restore a model's modules, and the random number generators, if the block raises.

    Restored are the tree of modules, hooks, modes, attributes, and the labels of transformers configurations. The block
    must not write into the model's own tensors.

    Args:
        model: The model.
        rewritten: Modules whose tensors the block writes or moves, such as a head; these tensors are restored too.
    """
    steps: list[Undo] = [_random_numbers()]
    for module in dict.fromkeys(inner for root in (model, *rewritten) for inner in root.modules()):
        steps.append(_attributes(module))
    steps += [_tensor(parameter) for root in rewritten for parameter in root.parameters()]
    undone = False
    try:
        try:
            yield
        except BaseException:
            _run(steps)
            undone = True
            raise
    except BaseException:
        if not undone:  # an interrupt stopped the undoing; every step can be repeated
            _run(steps)
        raise


def _run(steps: list[Undo]) -> None:
    for step in steps:
        step()


def _attributes(module: nn.Module) -> Undo:
    """Return a function that gives a module its class, its attributes and the content of its dictionaries back."""
    kind, attributes = type(module), dict(vars(module))
    contents = [(table, dict(table)) for table in attributes.values() if isinstance(table, dict)]
    config = attributes.get("config")
    labels = {name: vars(config)[name] for name in ("id2label", "label2id") if name in getattr(config, "__dict__", ())}

    def restore() -> None:
        if type(module) is not kind:
            module.__class__ = kind
        vars(module).clear()
        vars(module).update(attributes)
        for table, content in contents:
            if table != content or list(table) != list(content):
                table.clear()
                table.update(content)
        if labels:
            vars(config).update(labels)

    return restore


def _tensor(parameter: nn.Parameter) -> Undo:
    """Return a function that gives a parameter its memory and its values back."""
    kind, data, requires_grad = type(parameter), parameter.data, parameter.requires_grad
    values = None if is_lazy(parameter) else data.clone()

    @torch.no_grad()
    def restore() -> None:
        parameter.data = data
        if values is not None:
            parameter.data.copy_(values)
        if type(parameter) is not kind:
            parameter.__class__ = kind
        if parameter.requires_grad != requires_grad:
            parameter.requires_grad = requires_grad

    return restore


def _random_numbers() -> Undo:
    """Return a function that sets the random number generators back."""
    state = torch.random.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]

    def restore() -> None:
        torch.random.set_rng_state(state)
        if devices:
            torch.cuda.set_rng_state_all(devices)

    return restore
