"""Faults in what a model holds: parameters and buffers."""

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from resilient_heads.errors import FaultError, InjectionError
from resilient_heads.injection.apply.strike import strike
from resilient_heads.injection.apply.verification import InjectionReport, Ledger
from resilient_heads.injection.faults.fault import AnyFault, Fault
from resilient_heads.injection.faults.targets import StoredTensor
from resilient_heads.injection.formats.bits import stored_words
from resilient_heads.injection.formats.dtypes import word_of
from resilient_heads.injection.sites.modules import module_named

_ONE_ROW = np.zeros(1, dtype=np.int64)


@contextmanager
def inject_stored(
    model: nn.Module, faults: Sequence[tuple[Fault, AnyFault]], report: InjectionReport
) -> Iterator[None]:
    """Corrupt parameters and buffers inside the block; restore every bit on exit.

    Args:
        model: The model.
        faults: Each fault, and as the caller gave it.
        report: Counts the strikes.

    Raises:
        FaultError: An unknown layer or tensor, an element or bit that does not exist.
        InjectionError: A fault is not in memory after it was written, or a compiled graph would not read it.
    """
    found = [(name, tensor, fault, given) for fault, given in faults for name, tensor in _targets(model, fault)]
    if found:
        _refuse_frozen_graphs()
    undo: list[Callable[[], None]] = []
    ledger = Ledger()
    try:
        with torch.no_grad():
            for name, tensor, fault, given in found:
                held = tensor.data.unsqueeze(0)
                what = f"the {name.rpartition(chr(0))[2]} of {name.partition(chr(0))[0]!r}"
                undo.append(
                    strike(
                        stored_words(held),
                        held,
                        _ONE_ROW,
                        _ONE_ROW,
                        fault=fault,
                        given=given,
                        stream=name,
                        what=what,
                        ledger=ledger,
                    )
                )
            ledger.check(report)
        yield
    finally:
        for back in reversed(undo):
            back()


def _targets(model: nn.Module, fault: Fault) -> list[tuple[str, Tensor]]:
    """Return the tensors that a fault strikes, each with the name of its draws; shared memory once."""
    assert isinstance(fault.tensor, StoredTensor)
    wanted = fault.tensor.name
    if not fault.is_pattern:
        module = module_named(model, fault.layer)
        names = list(_own(module)[0]) if wanted is None else [wanted]
        if not names:
            raise FaultError(f"{fault.layer!r} has no parameters.")
        found = [(fault.layer, name, module) for name in names]
    else:
        modules = dict(model.named_modules())
        found = []
        for layer in fault.matches(modules):
            parameters, buffers = _own(modules[layer])
            names = list(parameters) if wanted is None else [wanted]
            found += [(layer, n, modules[layer]) for n in names if n.split(".")[0] in parameters | buffers]
        if not found:
            raise FaultError(
                f"No layer of {type(model).__name__} that matches {fault.layer!r} holds "
                f"{'a parameter' if wanted is None else repr(wanted)}."
            )
    once: dict[tuple[object, ...], tuple[str, Tensor]] = {}
    for layer, name, module in found:
        for inner, tensor in _tensors(layer, module, name, expand=wanted is None):
            key = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            if tensor.numel() or not fault.is_pattern:
                once.setdefault(key, (f"{layer}\0{inner}", tensor))
    return list(once.values())


def _own(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return a module's own parameters and buffers."""
    parameters: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
    return parameters, dict(module.named_buffers(recurse=False))


def _tensors(layer: str, module: nn.Module, name: str, *, expand: bool) -> list[tuple[str, Tensor]]:
    """Return plain tensors: the one of a name, or all that a wrapped one holds where ``expand`` asks for it."""
    parameters, buffers = _own(module)
    first, *rest = name.split(".")
    if first not in parameters | buffers:
        known = ", ".join([*parameters, *buffers]) or "none"
        raise FaultError(f"{layer!r} has no parameter {first!r}; it has: {known}.")
    tensor = (parameters | buffers)[first]
    for part in rest:
        if part not in _inner(tensor):
            raise FaultError(
                f"{first!r} of {layer!r} holds no {part!r}; it holds: {', '.join(_inner(tensor)) or 'none'}."
            )
        tensor = getattr(tensor, part)
    inner = _inner(tensor)
    if inner and expand:
        return [pair for part in inner for pair in _tensors(layer, module, f"{name}.{part}", expand=True)]
    if inner:
        raise FaultError(
            f"{name!r} of {layer!r} is a {type(tensor).__name__}, which computes its values from others; a fault needs "
            f"a tensor in memory. Name one: {', '.join(f'{name}.{part}' for part in inner)}."
        )
    if is_lazy(tensor):
        raise FaultError(f"{name!r} of {layer!r} has no size yet; run the model once.")
    if tensor.is_meta:
        raise FaultError(f"{name!r} of {layer!r} is on the meta device: it has no memory that a fault could strike.")
    word_of(tensor.dtype)
    return [(name, tensor)]


def _inner(tensor: Tensor) -> list[str]:
    """Return the names of the tensors that a tensor subclass (quantised, distributed) is made of."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    return [] if flatten is None else list(flatten()[0])


def _refuse_frozen_graphs() -> None:
    """Refuse if Inductor holds a frozen graph: parameters are constants in it, so a fault would never be read."""
    if "torch._inductor.freezing" not in sys.modules:
        return
    if _frozen_graph_alive():
        gc.collect()  # one that nobody can call any more does not count
    if _frozen_graph_alive():
        raise InjectionError(
            "A graph compiled with freezing is alive; its parameters are constants, so faults in weights would not "
            "reach it. Call torch.compiler.reset(), and inject into the model that is not compiled."
        )


def _frozen_graph_alive() -> bool:
    """Whether a graph with parameters as constants can still be called; which model it is of cannot be known."""
    from torch._inductor.output_code import CompiledFxGraph

    graphs = (kept for kept in gc.get_objects() if type(kept) is CompiledFxGraph)
    return any(getattr(graph, "frozen_param_names", None) for graph in graphs)
