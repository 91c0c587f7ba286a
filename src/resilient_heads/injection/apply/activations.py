"""Inject faults into what passes through a model: outputs and inputs of its modules."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from resilient_heads.errors import FaultError, InjectionError
from resilient_heads.incremental.recording.tape import kind_of
from resilient_heads.injection.apply.core import FaultyTensor
from resilient_heads.injection.apply.hooks import Hook, Kind, hooked, is_set
from resilient_heads.injection.apply.recompute import CheckpointedRuns, PassState, Run, in_backward, in_checkpoint
from resilient_heads.injection.apply.verification import InjectionReport, WrittenFault, require_effect
from resilient_heads.injection.faults.fault import AnyFault, Fault
from resilient_heads.injection.faults.targets import Activation, Input, Key
from resilient_heads.injection.formats.dtypes import format_of
from resilient_heads.injection.random.streams import stream_name
from resilient_heads.injection.sites.modules import leaves_matching, module_named, refuse_scripts
from resilient_heads.injection.sites.nested import find_tensor, with_tensor


@dataclass(slots=True, eq=False)
class _ActiveFault:
    """A fault in one layer while the block runs.

    Attributes:
        layer: Name of the layer.
        fault: The fault.
        target: The fault's ``tensor``.
        given: The fault as the caller gave it, for errors.
        images: Images that have passed the layer so far.
        injected: Whether the fault has been injected at least once.
    """

    layer: str
    fault: Fault
    target: Activation
    given: AnyFault
    images: int = 0
    injected: bool = False


@dataclass(slots=True, eq=False)
class _Injections:
    """All faults in the outputs of one module, or all faults in its inputs.

    Attributes:
        kind: ``"output"`` or ``"input"``.
        report: Counts the injected values.
        state: The present forward pass.
        faults: The faults, in the caller's order.
        calls: Runs of the module since the model's forward pass began.
        checkpointed: Runs that a backward pass may compute again.
    """

    kind: Kind
    report: InjectionReport
    state: PassState
    faults: list[_ActiveFault] = field(default_factory=list)
    calls: int = 0
    checkpointed: CheckpointedRuns = field(default_factory=CheckpointedRuns)


@contextmanager
def inject_activations(
    model: nn.Module, faults: Sequence[tuple[Fault, AnyFault]], report: InjectionReport
) -> Iterator[None]:
    """Inject faults into outputs and inputs at every forward pass inside the block.

    Args:
        model: The model.
        faults: Each fault, and the same fault as the caller gave it.
        report: Counts the injected values.

    Raises:
        FaultError: An unknown layer; during a pass, an element or bit that does not exist.
        InjectionError: During a pass, a fault that did not take effect; at the end, a layer that never ran.
    """
    if faults:
        refuse_scripts(model)
    state = PassState()
    places: dict[tuple[nn.Module, Kind], _Injections] = {}  # One module may have several names.
    for fault, given in faults:
        assert isinstance(fault.tensor, Activation)
        kind: Kind = "input" if isinstance(fault.tensor, Input) else "output"
        for layer in leaves_matching(model, fault):
            place = places.setdefault((module_named(model, layer), kind), _Injections(kind, report, state))
            place.faults.append(_ActiveFault(layer, fault, fault.tensor, given))
    hooks = [
        (module, kind, Hook(partial(_inject_inputs if kind == "input" else _inject_output, place)))
        for (module, kind), place in places.items()
    ]
    passes: list[tuple[nn.Module, Kind, Hook]] = []
    if hooks:
        passes = [(model, "input", Hook(partial(_start_pass, list(places.values()))))]
        passes += [(model, "output", Hook(partial(_finish_pass, state)))]
    try:
        with hooked(model, [*passes[:1], *hooks, *passes[1:]]):
            yield
            found = [is_set(module, hook) for module, _, hook in hooks]
    finally:
        state.ended = True
    unused = [one for place in places.values() for one in place.faults if not one.injected]
    if unused:
        raise InjectionError(_never_ran(min(unused, key=lambda one: (one.layer, str(one.target.call)))))
    modules = set(model.modules())
    for on_module, ((module, kind), place) in zip(found, places.items(), strict=True):
        if not on_module or module not in modules:
            raise InjectionError(
                f"The {kind} of {place.faults[0].layer!r} lost its fault inside the inject block: the layer's hooks "
                "were cleared, or the layer was replaced. A part of the block may have run without the fault; change "
                "the model before the block or after it."
            )


def _start_pass(places: Sequence[_Injections], _module: nn.Module, _args: object, _kwargs: object) -> None:
    """Count the runs of each module anew as a forward pass of the model begins (a forward pre-hook)."""
    if not in_backward():
        places[0].state.start()
        for place in places:
            place.calls = 0


def _finish_pass(state: PassState, _module: nn.Module, _inputs: object, output: object) -> None:
    """End a forward pass of the model (a forward hook)."""
    if not in_backward():
        state.finish(output)


def require_plain(tensor: Tensor, what: str) -> Tensor:
    """Return a floating tensor that holds its values itself.

    Raises:
        FaultError: The tensor's dtype has no known format, or its values lie in other tensors.
    """
    if kind_of(tensor) is not None:
        raise FaultError(
            f"{what[0].upper()}{what[1:]} is a {kind_of(tensor)}, which keeps its values in other tensors; a "
            "write into it might change nothing. Inject into a layer whose tensor is a plain torch.Tensor."
        )
    format_of(tensor.dtype)
    return tensor.resolve_neg()


def _never_ran(unused: _ActiveFault) -> str:
    """Return the error for a fault that was never injected."""
    call = "" if unused.target.call is None else f" in call {unused.target.call} of a forward pass"
    return (
        f"No fault was injected into {unused.layer!r}{call}: the layer did not run inside the block. Perhaps the model "
        "never calls it, uses it functionally, or was compiled before the block."
    )


def _inject_output(place: _Injections, _module: nn.Module, _inputs: object, output: object) -> object:
    """Return a module's output with faults (a forward hook)."""
    return _with_faults(output, place)


def _inject_inputs(
    place: _Injections, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Return a module's arguments with faults (a forward pre-hook)."""
    by_name = any(isinstance(key, str) for one in place.faults for key in (one.target.keys or ())[:1])
    names = list(inspect.signature(module.forward).parameters) if by_name else []
    arguments: dict[Key, object] = dict(enumerate(args))
    arguments.update(kwargs.items())
    faulty = _with_faults(arguments, place, names)
    return tuple(faulty[i] for i in range(len(args))), {name: faulty[name] for name in kwargs}


def _with_faults(value: Any, place: _Injections, names: Sequence[str] = ()) -> Any:
    """Return what a module takes or returns, with faults in it.

    Args:
        value: A tensor, or a container of tensors.
        place: The faults.
        names: Names of the module's parameters, if a fault names one.
    """
    run, repeats = _this_run(value, place)
    by_path: dict[tuple[Key, ...], list[tuple[_ActiveFault, int]]] = {}
    for one, first_image in zip(place.faults, run.first_images, strict=True):
        if one.target.call in (None, run.call):
            keys = _keys_of_argument(one.target.keys, value, names) if names else one.target.keys
            path, _ = find_tensor(value, keys, f"the {place.kind} of {one.layer!r}")
            by_path.setdefault(path, []).append((one, first_image))
    for path, faults in by_path.items():
        what = f"the {place.kind} of {faults[0][0].layer!r}"
        golden = require_plain(find_tensor(value, path, what)[1], what)
        value = with_tensor(value, path, _faulty_copy(golden, faults, place, repeats))
    return value


def _this_run(value: object, place: _Injections) -> tuple[Run, bool]:
    """Return the present run of a module, and whether a backward pass repeats it."""
    if in_backward():
        return place.checkpointed.repeated(value, f"the {place.kind} of {place.faults[0].layer!r}"), True
    run = Run(place.calls, tuple(one.images if one.fault.draws_anew else 0 for one in place.faults))
    place.calls += 1
    if place.state.may_repeat and in_checkpoint():
        place.state.checkpointed = True
        place.checkpointed.keep(run, value)
    return run, False


def _keys_of_argument(
    keys: tuple[Key, ...] | None, arguments: Mapping[Key, object], names: Sequence[str]
) -> tuple[Key, ...] | None:
    """Return the keys of an argument, for one that is named by the fault and passed by position."""
    if keys and keys[0] in names and keys[0] not in arguments:
        return (names.index(str(keys[0])), *keys[1:])
    return keys


def _faulty_copy(
    golden: Tensor, faults: Sequence[tuple[_ActiveFault, int]], place: _Injections, repeats: bool
) -> Tensor:
    """Return a copy of a tensor with faults in it, verified.

    Args:
        golden: The tensor.
        faults: The faults, each with the number of its first image.
        place: The module.
        repeats: A backward pass repeats the run, so that its images and values have been counted already.
    """
    target = FaultyTensor(
        golden.clone(memory_format=torch.preserve_format), golden, f"the {place.kind} of {faults[0][0].layer!r}"
    )
    written = []
    for one, first_image in faults:
        what = f"the {place.kind} of {one.layer!r}"
        images_first = partial(_images_first, batch_dim=one.target.batch_dim, what=what)
        count = len(images_first(golden))
        rows = np.arange(count)
        if one.target.batch_index is not None:
            if not 0 <= one.target.batch_index < count:
                raise FaultError(f"batch_index {one.target.batch_index} does not exist in a batch of {count}.")
            rows = rows[[one.target.batch_index]]
        if not len(rows):
            continue
        purpose = ["input"] if place.kind == "input" else []
        purpose += [] if one.target.path is None else [str(one.target.path)]
        stream, shape = stream_name(one.layer, *purpose), images_first(golden).shape[1:]
        draws = one.fault.draw(stream, rows + first_image, shape, golden.dtype, what)
        write = target.inject(draws, one.fault.model, images_first, rows=torch.from_numpy(rows))
        written.append(WrittenFault(one.fault, one.given, draws, write))
        one.images += 0 if repeats else count
        one.injected = True
    target.verify()
    require_effect(written, InjectionReport() if repeats else place.report)
    return target.faulty


def _images_first(tensor: Tensor, batch_dim: int | None, what: str) -> Tensor:
    """Return a view whose first dimension counts images; without a batch dimension, the tensor is one image."""
    if batch_dim is None:
        return tensor.unsqueeze(0)
    if not tensor.ndim:
        raise FaultError(f"{what[0].upper()}{what[1:]} is a single number without a batch dimension.")
    if not -tensor.ndim <= batch_dim < tensor.ndim:
        shape = tuple(tensor.shape)
        raise FaultError(f"{what[0].upper()}{what[1:]} has no dimension {batch_dim}; its shape is {shape}.")
    return tensor.movedim(batch_dim, 0)
