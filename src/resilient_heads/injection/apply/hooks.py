"""Hooks that act inside of one block only, on the modules that they were set on."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from torch import nn
from torch.utils.hooks import RemovableHandle

from resilient_heads.evaluation import undone

Kind = Literal["input", "output"]


class Hook:
    """A hook that does nothing once its block has ended, on a copy of a module that was made inside the block too.

    Args:
        act: What the hook does: a forward hook, or a forward pre-hook with keyword arguments. None does nothing.
    """

    def __init__(self, act: Callable[..., Any] | None) -> None:
        self.act = act

    def __call__(self, *arguments: Any) -> Any:
        """Act on the inputs or the output of a module."""
        return None if self.act is None else self.act(*arguments)

    def __deepcopy__(self, _memo: object) -> "Hook":
        return self

    def __reduce__(self) -> tuple[type["Hook"], tuple[None]]:
        return Hook, (None,)


@contextmanager
def hooked(model: nn.Module, hooks: Sequence[tuple[nn.Module, Kind, Hook]]) -> Iterator[None]:
    """Set hooks on modules of a model, on their inputs or their outputs; after the block, no hook is left."""
    if not hooks:
        yield
        return
    handles: list[RemovableHandle] = []

    def remove() -> None:
        ours = {hook for _, _, hook in hooks}
        for hook in ours:
            hook.act = None
        for handle in handles:
            handle.remove()
        for module in {*model.modules(), *(module for module, _, _ in hooks)}:  # Copies took their hooks along.
            for table in (module._forward_hooks, module._forward_pre_hooks):
                for number in [number for number, one in table.items() if isinstance(one, Hook) and one in ours]:
                    del table[number]
            for handle in handles:  # Also flags of hooks that someone cleared.
                if handle.id not in module._forward_pre_hooks:
                    module._forward_pre_hooks_with_kwargs.pop(handle.id, None)

    with undone(remove):
        for module, kind, hook in hooks:
            if kind == "input":
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(hook))
        yield


def is_set(module: nn.Module, hook: Hook) -> bool:
    """Whether a hook is on a module."""
    return any(one is hook for table in (module._forward_hooks, module._forward_pre_hooks) for one in table.values())
