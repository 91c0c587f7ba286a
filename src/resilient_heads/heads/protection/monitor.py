"""What protections caught."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from resilient_heads.errors import ModelError
from resilient_heads.heads.protection.layers import find_protectable
from resilient_heads.heads.protection.parts import Bounded, BoundedNorm, Choice, Vote


@dataclass(frozen=True, slots=True)
class Catch:
    """What one head's protection caught.

    Attributes:
        samples: Samples (of token or map heads: positions) that came by.
        bounds: Values that were beyond their bounds, in all computations.
        checksum: Samples whose sums were wrong, so that the second computation was taken. Samples whose values are NaN
            or infinite, or leave the format on the way, are among them without any fault: no sum can be held against
            another there, and the second computation gives the same.
        median: Samples of which at least one logit was outvoted.
    """

    samples: int = 0
    bounds: int = 0
    checksum: int = 0
    median: int = 0


class ProtectionMonitor:
    """Counts what the protections of a model catch, from its making until ``close``; a context manager.

    Without it nothing is counted, and nothing is paid. Reading waits for the device, counting does not. Enter it before
    the model is compiled or exported, since code that is generated does not see it later. A copy of the model, or one
    read from a pickle, counts for itself; nobody reads that.

    Args:
        model: A model with protected heads.

    Raises:
        ModelError: No head of the model is protected.
    """

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, nn.Module):
            raise ModelError(f"Expected a torch.nn.Module, found {type(model).__name__}.")
        heads = {name: head for name, head in find_protectable(model).items() if head.guard is not None}
        if not heads:
            raise ModelError(f"{type(model).__name__} has no protected head; call protect_(model, ...) first.")
        self._names = tuple(heads)
        self._sums: dict[tuple[str, str], Tensor] = {}
        self._handles: list[RemovableHandle] = []
        for name, head in heads.items():
            dim = head.features_dim
            self._handles.append(head.register_forward_hook(_Counter(self._sums, name, "samples", dim, _samples)))
            for module in head.modules():
                if type(module) in _COUNTED:
                    field, count = _COUNTED[type(module)]
                    counter = _Counter(self._sums, name, field, dim, count)
                    self._handles.append(module.register_forward_hook(counter))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def counts(self) -> dict[str, Catch]:
        """What was caught so far, by the head's name in the model."""
        found = dict.fromkeys(self._names, Catch())
        for (name, field), total in self._sums.items():
            found[name] = replace(found[name], **{field: int(total)})
        return found

    def reset(self) -> None:
        """Start again from 0."""
        self._sums.clear()

    def close(self) -> None:
        """Stop counting; the counts stay."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


@dataclass(frozen=True, slots=True)
class _Counter:
    """A forward hook that adds to a count, without waiting for the device; a class of its own, so it can be pickled."""

    sums: dict[tuple[str, str], Tensor]
    name: str
    field: str
    dim: int
    count: Callable[[tuple[Any, ...], Tensor, int], Tensor]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """Count what one run of the module did."""
        if self.count is _samples and module.training:
            return
        number, key = self.count(args, output, self.dim), (self.name, self.field)
        self.sums[key] = self.sums[key] + number if key in self.sums else number


def _samples(args: tuple[Any, ...], output: Tensor, dim: int) -> Tensor:
    """Return how many samples came by."""
    return torch.tensor(output.numel() // output.shape[dim])


def _replaced(args: tuple[Any, ...], output: Tensor, dim: int) -> Tensor:
    """Return how many values were replaced."""
    return _differ(args[0], output).sum()


def _recomputed(args: tuple[Any, ...], output: Tensor, dim: int) -> Tensor:
    """Return for how many samples an alarm was raised."""
    fine: Tensor = args[2] <= 0
    return (~fine).any(dim=dim).sum()


def _outvoted(args: tuple[Any, ...], output: Tensor, dim: int) -> Tensor:
    """Return how many samples have a logit that one of the three computations gives differently."""
    first, second, third = args
    return (_differ(first, output) | _differ(second, output) | _differ(third, output)).any(dim=dim).sum()


def _differ(one: Tensor, other: Tensor) -> Tensor:
    """Return where two tensors differ; NaN equals NaN."""
    return (one != other) & ~(one.isnan() & other.isnan())


_COUNTED: dict[type[nn.Module], tuple[str, Callable[[tuple[Any, ...], Tensor, int], Tensor]]] = {
    Bounded: ("bounds", _replaced),
    BoundedNorm: ("bounds", _replaced),
    Choice: ("checksum", _recomputed),
    Vote: ("median", _outvoted),
}
