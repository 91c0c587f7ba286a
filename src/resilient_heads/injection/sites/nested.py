"""Find one tensor in what a module takes or returns, and put another tensor in its place."""

import copy
import dataclasses
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor

from resilient_heads.errors import FaultError
from resilient_heads.injection.faults.targets import Key


def find_tensor(value: object, path: tuple[Key, ...] | None, what: str) -> tuple[tuple[Key, ...], Tensor]:
    """Return the path and the tensor that a fault names.

    Args:
        value: A tensor, or tuples, lists, mappings and dataclasses of tensors.
        path: Keys from the outside in; None takes the first floating tensor.
        what: What errors call the value, such as ``"the output of 'fc'"``.

    Raises:
        FaultError: There is no tensor at the path, or no floating tensor at all.
    """
    if path is None:
        tensors = list(tensors_in(value))
        for keys, tensor in tensors:
            if tensor.is_floating_point():
                return keys, tensor
        kind = tensors[0][1].dtype if tensors else f"a {type(value).__name__} without tensors"
        raise FaultError(f"Expected {what} to hold a floating tensor, found {kind}.")
    inner = value
    for key in path:
        found = dict(members(inner))
        if key not in found:
            raise FaultError(
                f"{what[0].upper()}{what[1:]} has no member {key!r}; it is a {type(inner).__name__} with: "
                f"{', '.join(repr(name) for name in found) or 'none'}."
            )
        inner = found[key]
    if not isinstance(inner, Tensor):
        raise FaultError(f"Expected a tensor in {what} at path {path}, found a {type(inner).__name__}.")
    return path, inner


def with_tensor(value: Any, path: tuple[Key, ...], tensor: Tensor) -> Any:
    """Return a copy of a value with another tensor at a path; the value and its containers are left as they are."""
    if not path:
        return tensor
    key, rest = path[0], path[1:]
    inner = with_tensor(dict(members(value))[key], rest, tensor)
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
    raise FaultError(
        f"No tensor can be replaced in a {type(value).__name__}; expected a tuple, list, mapping or dataclass."
    )


def members(value: object) -> Iterator[tuple[Key, object]]:
    """Yield the keys and values of a container."""
    if isinstance(value, list | tuple):
        yield from enumerate(value)
    elif isinstance(value, Mapping):
        yield from value.items()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield field.name, getattr(value, field.name)


def tensors_in(value: object, path: tuple[Key, ...] = ()) -> Iterator[tuple[tuple[Key, ...], Tensor]]:
    """Yield all tensors of a container with their paths, in order."""
    if isinstance(value, Tensor):
        yield path, value
        return
    for key, inner in members(value):
        yield from tensors_in(inner, (*path, key))
