"""Faults in what passes through a model: outputs and inputs of its modules."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from resilient_heads.errors import FaultError, InjectionError
from resilient_heads.injection.apply.strike import strike
from resilient_heads.injection.apply.verification import InjectionReport, Ledger
from resilient_heads.injection.faults.fault import AnyFault, Fault
from resilient_heads.injection.faults.targets import Activation, Input, Key
from resilient_heads.injection.formats.bits import stored_words
from resilient_heads.injection.formats.dtypes import format_of
from resilient_heads.injection.random.streams import stream_name
from resilient_heads.injection.sites.modules import leaves_matching, module_named, refuse_scripts
from resilient_heads.injection.sites.nested import locate, replaced


@dataclass(slots=True, eq=False)
class _Watch:
    """The faults in one module's outputs, or inputs, and what was seen of it so far."""

    faults: list[tuple[str, Fault, AnyFault]] = field(default_factory=list)
    calls: int = 0
    samples: list[int] = field(default_factory=list)
    fired: list[bool] = field(default_factory=list)

    def add(self, layer: str, fault: Fault, given: AnyFault) -> None:
        self.faults.append((layer, fault, given))
        self.samples.append(0)
        self.fired.append(False)

    @property
    def silent(self) -> list[tuple[str, int | None]]:
        """The layers, and calls, where a fault never struck."""
        found = []
        for (layer, fault, _), fired in zip(self.faults, self.fired, strict=True):
            assert isinstance(fault.tensor, Activation)
            if not fired:
                found.append((layer, fault.tensor.call))
        return found


@contextmanager
def inject_activations(
    model: nn.Module, faults: Sequence[tuple[Fault, AnyFault]], report: InjectionReport
) -> Iterator[None]:
    """Apply faults in outputs and inputs at every forward pass inside the block.

    Args:
        model: The model.
        faults: Each fault, and as the caller gave it.
        report: Counts the strikes.

    Raises:
        FaultError: An unknown layer; during a pass, an element or bit that does not exist.
        InjectionError: During a pass, a fault that did not take effect; at the end, a layer that never ran.
    """
    if faults:
        refuse_scripts(model)
    watches: dict[tuple[nn.Module, bool], _Watch] = {}  # one module may be known by several names
    for fault, given in faults:
        for layer in leaves_matching(model, fault):
            at_input = isinstance(fault.tensor, Input)
            watches.setdefault((module_named(model, layer), at_input), _Watch()).add(layer, fault, given)

    def begin(_module: nn.Module, _inputs: object) -> None:
        for watch in watches.values():
            watch.calls = 0

    handles = []
    try:
        if watches:
            handles.append(model.register_forward_pre_hook(begin))
        for (module, at_input), watch in watches.items():
            if at_input:
                handles.append(module.register_forward_pre_hook(_on_inputs(watch, report), with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(_on_output(watch, report)))
        yield
    finally:
        for handle in handles:
            handle.remove()
    silent = [pair for watch in watches.values() for pair in watch.silent]
    if silent:
        raise InjectionError(never(*min(silent, key=str)))


def plain_tensor(tensor: Tensor, what: str) -> Tensor:
    """Return a tensor that faults can strike: floating, and in memory, not a view of something else.

    Raises:
        FaultError: It is none.
    """
    if hasattr(tensor, "__tensor_flatten__"):
        raise FaultError(
            f"{what[0].upper()}{what[1:]} is a {type(tensor).__name__}, whose values lie in other tensors; a write "
            "into it might reach nothing. Inject where the tensor is plain."
        )
    format_of(tensor.dtype)
    return tensor


def never(layer: str, call: int | None = None) -> str:
    """Say that a layer's hook did not run."""
    which = "" if call is None else f" in its call {call} of a run"
    return (
        f"No fault struck {layer!r}{which}: the layer did not run inside the block (not called, used functionally, or "
        "compiled before the hook was set)."
    )


def _on_output(watch: _Watch, report: InjectionReport) -> Any:
    def hook(_module: nn.Module, _inputs: object, output: object) -> object:
        return _struck(output, watch, report, "output")

    return hook


def _on_inputs(watch: _Watch, report: InjectionReport) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        by_name = any(isinstance(key, str) for _, fault, _ in watch.faults for key in _keys(fault)[:1])
        names = list(inspect.signature(module.forward).parameters) if by_name else []
        given: dict[Key, object] = dict(enumerate(args))
        given.update(kwargs.items())
        struck = _struck(given, watch, report, "input", names=names)
        assert isinstance(struck, dict)
        return tuple(struck[i] for i in range(len(args))), {name: struck[name] for name in kwargs}

    return hook


def _keys(fault: Fault) -> tuple[Key, ...]:
    """Return the path to a fault's tensor."""
    assert isinstance(fault.tensor, Activation)
    return fault.tensor.keys or ()


def _struck(value: Any, watch: _Watch, report: InjectionReport, kind: str, names: Sequence[str] = ()) -> Any:
    """Return what a module's neighbours see instead of ``value``."""
    call, watch.calls = watch.calls, watch.calls + 1
    by_path: dict[tuple[Key, ...], list[int]] = {}
    for number, (layer, fault, _) in enumerate(watch.faults):
        assert isinstance(fault.tensor, Activation)
        if fault.tensor.call in (None, call):
            keys = fault.tensor.keys
            if keys and keys[0] in names and keys[0] not in value:  # an argument that was given by position
                keys = (names.index(str(keys[0])), *keys[1:])
            path, _ = locate(value, keys, f"the {kind} of {layer!r}")
            by_path.setdefault(path, []).append(number)
    for path, numbers in by_path.items():
        what = f"the {kind} of {watch.faults[numbers[0]][0]!r}"
        golden = plain_tensor(locate(value, path, what)[1], what)
        value = replaced(value, path, _faulty(golden, watch, numbers, report, kind))
    return value


def _faulty(golden: Tensor, watch: _Watch, numbers: list[int], report: InjectionReport, kind: str) -> Tensor:
    """Return a copy of a tensor with some faults in it, read back."""
    faulty = golden.clone(memory_format=torch.preserve_format)
    ledger = Ledger()
    for number in numbers:
        layer, fault, given = watch.faults[number]
        assert isinstance(fault.tensor, Activation)
        what = f"the {kind} of {layer!r}"
        target, clean = (_by_sample(t, fault.tensor.batch_dim, what) for t in (faulty, golden.detach()))
        rows = np.arange(len(target))
        if fault.tensor.batch_index is not None:
            if not 0 <= fault.tensor.batch_index < len(rows):
                raise FaultError(f"batch_index {fault.tensor.batch_index} does not exist in a batch of {len(rows)}.")
            rows = rows[[fault.tensor.batch_index]]
        if not len(rows):
            continue
        purpose = (["input"] if kind == "input" else []) + ([] if fault.tensor.path is None else [fault.tensor.path])
        stream = stream_name(layer, *purpose)
        own = rows + watch.samples[number]
        strike(target, clean, rows, own, fault=fault, given=given, stream=stream, what=what, ledger=ledger)
        watch.samples[number] += len(target)
        watch.fired[number] = True
    before = InjectionReport(report.struck, report.without_effect)
    due = ledger.check(report)
    changed = int(torch.count_nonzero(stored_words(faulty.detach()) != stored_words(golden.detach())))
    if changed != due:
        report.struck, report.without_effect = before.struck, before.without_effect
        raise InjectionError(f"An injection into {watch.faults[numbers[0]][0]!r} changed values that no fault strikes.")
    return faulty


def _by_sample(tensor: Tensor, batch_dim: int | None, what: str) -> Tensor:
    """Return a view whose first dimension counts samples."""
    if batch_dim is None:
        return tensor.unsqueeze(0)
    if not tensor.ndim:
        raise FaultError(f"{what[0].upper()}{what[1:]} is a single number without a batch dimension.")
    if not -tensor.ndim <= batch_dim < tensor.ndim:
        shape = tuple(tensor.shape)
        raise FaultError(f"{what[0].upper()}{what[1:]} has no dimension {batch_dim}; its shape is {shape}.")
    return tensor.movedim(batch_dim, 0)
