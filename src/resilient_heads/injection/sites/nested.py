"""Reach one tensor inside of what a module takes or returns, and put another in its place."""

import copy
import dataclasses
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor

from resilient_heads.errors import FaultError
from resilient_heads.injection.faults.targets import Key


def locate(value: object, path: tuple[Key, ...] | None, what: str) -> tuple[tuple[Key, ...], Tensor]:
    """Return the path and the tensor that a fault means.

    Args:
        value: A tensor, or tuples, lists, mappings and dataclasses of them.
        path: Keys from the outside in; None takes the first floating tensor.
        what: Named in errors, such as ``"the output of 'fc'"``.

    Raises:
        FaultError: There is no tensor there.
    """
    if path is None:
        found = list(_tensors(value, ()))
        for keys, tensor in found:
            if tensor.is_floating_point():
                return keys, tensor
        kind = found[0][1].dtype if found else f"a {type(value).__name__} without tensors"
        raise FaultError(f"{what[0].upper()}{what[1:]} is {kind}; faults strike floating tensors.")
    inner = value
    for key in path:
        members = dict(_members(inner))
        if key not in members:
            raise FaultError(
                f"{what[0].upper()}{what[1:]} has no member {key!r}; it is a {type(inner).__name__} with: "
                f"{', '.join(repr(name) for name in members) or 'none'}."
            )
        inner = members[key]
    if not isinstance(inner, Tensor):
        raise FaultError(f"{what[0].upper()}{what[1:]} at {path} is a {type(inner).__name__}; faults strike tensors.")
    return path, inner


def replaced(value: Any, path: tuple[Key, ...], tensor: Tensor) -> Any:
    """Return a copy of ``value`` with another tensor at ``path``; containers on the way are copied, not changed."""
    if not path:
        return tensor
    key, rest = path[0], path[1:]
    inner = replaced(dict(_members(value))[key], rest, tensor)
    if isinstance(value, tuple):
        items = [inner if place == key else item for place, item in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, list | MutableMapping):
        changed = copy.copy(value)
        changed[key] = inner  # type: ignore[index]
        return changed
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        twin = copy.copy(value)
        object.__setattr__(twin, str(key), inner)
        return twin
    raise FaultError(f"Cannot put a tensor into a {type(value).__name__}.")


def _members(value: object) -> Iterator[tuple[Key, object]]:
    """Yield what a container holds."""
    if isinstance(value, list | tuple):
        yield from enumerate(value)
    elif isinstance(value, Mapping):
        yield from value.items()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield field.name, getattr(value, field.name)


def _tensors(value: object, path: tuple[Key, ...]) -> Iterator[tuple[tuple[Key, ...], Tensor]]:
    """Yield all tensors with their paths, in order."""
    if isinstance(value, Tensor):
        yield path, value
        return
    for key, inner in _members(value):
        yield from _tensors(inner, (*path, key))
