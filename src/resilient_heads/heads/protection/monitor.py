"""Count what the protections of a model detect."""

from collections.abc import Callable
from dataclasses import astuple, dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from resilient_heads.checks import instance_of
from resilient_heads.display import columns, cut, shortened
from resilient_heads.heads.protection.algebra import equal
from resilient_heads.heads.protection.layers import find_protected
from resilient_heads.heads.protection.parts import Bounded, BoundedNorm, Choice, Vote

Args = tuple[Any, ...]
Count = Callable[[Args, Tensor, int], Tensor]


@dataclass(frozen=True, slots=True)
class ProtectionCounts:
    """What the protection of one head detected.

    Attributes:
        rows: Rows of all batches that the head computed; for heads on tokens or feature maps, positions.
        restricted_values: Values beyond their limit, or NaN, in all computations (``bounds``, range restriction).
        checksum_alarms: Rows whose sums were wrong, so that the second computation was used (``checksum``, ABFT). Rows
            with NaN, Inf or an overflow are counted without a fault: their sums cannot be compared.
        outvoted_rows: Rows with a logit on which the three computations disagree (``median``, TMR).
    """

    rows: int = 0
    restricted_values: int = 0
    checksum_alarms: int = 0
    outvoted_rows: int = 0


class ProtectionMonitor:
    """Count what the protections of a model detect, until the block ends or ``close`` is called.

    Counting does not wait for the device; reading ``counts`` does. Create the monitor before the model is compiled or
    exported: compiled code ignores later hooks. A copy or pickle of the model does not add to these counts.

    Args:
        model: A model with protected heads.

    Raises:
        ArgumentError: ``model`` is not a torch.nn.Module.
        ModelError: No head of the model is protected.

    >>> import torch, resilient_heads as rh
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 3)).eval()
    >>> model = rh.protect_(model, median=True)
    >>> with rh.ProtectionMonitor(model) as monitor:
    ...     with rh.inject(model, rh.BitFlip(layer="0.guard.second.projection", neuron=(1,), bit=30)):
    ...         logits = model(torch.randn(4, 8))
    >>> monitor.counts["0"].outvoted_rows
    4
    """

    def __init__(self, model: nn.Module) -> None:
        instance_of("model", model, nn.Module, example="torchvision.models.resnet18()")
        heads = find_protected(model)
        self._names = tuple(heads)
        self._sums: dict[tuple[str, str], Tensor] = {}
        self._handles: list[RemovableHandle] = []
        for name, head in heads.items():
            for module in head.modules():
                counted = ("rows", _rows) if module is head else _COUNTED.get(type(module))
                if counted is not None:
                    counter = _Counter(self._sums, name, counted[0], head.graph().dim, counted[1])
                    self._handles.append(module.register_forward_hook(counter))

    def __str__(self) -> str:
        counts = [[cut(name, 30), *map(str, astuple(found))] for name, found in self.counts.items()]
        return shortened(columns([["head", *(field.name for field in fields(ProtectionCounts))], *counts]).splitlines())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def counts(self) -> dict[str, ProtectionCounts]:
        """What was detected so far, by the head's name in the model."""
        counts = dict.fromkeys(self._names, ProtectionCounts())
        for (name, field), total in self._sums.items():
            counts[name] = replace(counts[name], **{field: int(total)})
        return counts

    def reset(self) -> None:
        """Set all counts to 0."""
        self._sums.clear()

    def close(self) -> None:
        """Stop counting; the counts stay."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


@dataclass(frozen=True, slots=True)
class _Counter:
    """A forward hook that adds to a count on the device. It is a class because a pickled model needs a named one."""

    sums: dict[tuple[str, str], Tensor]
    head: str
    field: str
    dim: int
    count: Count

    def __call__(self, module: nn.Module, args: Args, output: Tensor) -> None:
        """Count one call of the module."""
        if self.field == "rows" and module.training:
            return
        number, key = self.count(args, output, self.dim), (self.head, self.field)
        self.sums[key] = self.sums[key] + number if key in self.sums else number


def _rows(args: Args, output: Tensor, dim: int) -> Tensor:
    """Return the number of rows."""
    return torch.tensor(output.numel() // output.shape[dim])


def _restricted(args: Args, output: Tensor, dim: int) -> Tensor:
    """Return the number of values that range restriction replaced."""
    return (~equal(args[0], output)).sum()


def _alarms(args: Args, output: Tensor, dim: int) -> Tensor:
    """Return the number of rows with a checksum alarm."""
    fine: Tensor = args[2] <= 0
    return (~fine).any(dim=dim).sum()


def _outvoted(args: Args, output: Tensor, dim: int) -> Tensor:
    """Return the number of rows with a logit on which the three computations disagree."""
    first, second, third = (equal(logits, output) for logits in args)
    return (~(first & second & third)).any(dim=dim).sum()


_COUNTED: dict[type[nn.Module], tuple[str, Count]] = {
    Bounded: ("restricted_values", _restricted),
    BoundedNorm: ("restricted_values", _restricted),
    Choice: ("checksum_alarms", _alarms),
    Vote: ("outvoted_rows", _outvoted),
}
