"""Inject faults into what a model holds: parameters and buffers."""

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from resilient_heads.errors import FaultError, InjectionError
from resilient_heads.evaluation import undone
from resilient_heads.incremental.recording.tape import kind_of
from resilient_heads.injection.apply.recompute import backward_inside
from resilient_heads.injection.apply.undo import (
    StoredFaults,
    clear_caches,
    inner_names,
    require_undone,
    undo_all,
    versions,
)
from resilient_heads.injection.apply.verification import InjectionReport, WrittenFault, require_effect
from resilient_heads.injection.faults.fault import AnyFault, Fault
from resilient_heads.injection.faults.targets import StoredTensor
from resilient_heads.injection.formats.dtypes import word_bits_of
from resilient_heads.injection.random.streams import stream_name
from resilient_heads.injection.sites.modules import module_named
from resilient_heads.wrappers import refuse_broadcast, refuse_sharded

_ONE_IMAGE = np.zeros(1, dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class _Stored:
    """A tensor that a module holds.

    Attributes:
        layer: Name of the module.
        name: Name of the tensor in the module, such as ``"weight"`` or ``"weight.qdata"``.
        tensor: The tensor.
    """

    layer: str
    name: str
    tensor: Tensor

    @property
    def memory(self) -> tuple[object, ...]:
        """Equal for two tensors that show the same memory in the same way."""
        tensor = self.tensor
        return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()

    @property
    def what(self) -> str:
        """What errors call the tensor."""
        return f"the {self.name} of {self.layer!r}"


@contextmanager
def inject_stored(
    model: nn.Module, faults: Sequence[tuple[Fault, AnyFault]], report: InjectionReport
) -> Iterator[None]:
    """Inject faults into parameters and buffers inside the block; restore every bit at its end.

    Args:
        model: The model.
        faults: Each fault, and the same fault as the caller gave it.
        report: Counts the injected values.

    Raises:
        FaultError: An unknown layer or tensor, or an element or bit that does not exist.
        InjectionError: A tensor does not hold exactly the fault after the write, or a compiled graph would not read it;
            at the end, a tensor that was overwritten, or that still holds the fault.
    """
    if faults:
        refuse_sharded(model)
    pairs = [(stored, fault, given) for fault, given in faults for stored in _stored_tensors(model, fault)]
    if pairs:
        refuse_broadcast(model, {f"{stored.layer}.{stored.name}" for stored, _, _ in pairs})
        _refuse_frozen_graphs()
    placed: list[StoredFaults] = []
    unchanged = versions(model) if pairs else {}
    try:
        with undone(partial(undo_all, placed, model)):
            written = []
            for _, group in groupby(pairs, key=lambda pair: pair[0].memory):
                together = list(group)
                first = together[0][0]
                placed.append(StoredFaults(first.layer, first.name, first.tensor, unchanged))
                written += _place(placed[-1], together)
            require_effect(written, report)
            if placed:
                clear_caches()  # They may hold what was computed from golden weights.
            with backward_inside(model, {stored.layer for stored, _, _ in pairs}):
                yield
    except BaseException as error:
        require_undone(placed, error)
        raise
    require_undone(placed)


def _place(stored: StoredFaults, faults: Sequence[tuple[_Stored, Fault, AnyFault]]) -> list[WrittenFault]:
    """Write faults into a stored tensor, and verify it."""
    written, target = [], stored.target()
    held = stored.held
    for name, fault, given in faults:
        draws = fault.draw(stream_name(name.layer, name.name), _ONE_IMAGE, held.shape, held.dtype, name.what)
        written.append(WrittenFault(fault, given, draws, target.inject(draws, fault.model, _as_one_image)))
    target.verify()
    stored.verified(target.writes)
    return written


def _as_one_image(tensor: Tensor) -> Tensor:
    """Return a view of a stored tensor as the tensor of one image."""
    return tensor.unsqueeze(0)


def _stored_tensors(model: nn.Module, fault: Fault) -> list[_Stored]:
    """Return the tensors that a fault is injected into; memory that several names share comes once."""
    assert isinstance(fault.tensor, StoredTensor)
    wanted = fault.tensor.name
    if not fault.is_pattern:
        module = module_named(model, fault.layer)
        names = list(_parameters(module)) if wanted is None else [wanted]
        if not names:
            raise FaultError(f"{fault.layer!r} has no parameters.")
        places = [(fault.layer, name, module) for name in names]
    else:
        modules = dict(model.named_modules())
        places = []
        for layer in fault.matches(modules):
            module = modules[layer]
            names = list(_parameters(module)) if wanted is None else [wanted]
            places += [(layer, name, module) for name in names if name.split(".")[0] in _direct_tensors(module)]
        if not places:
            raise FaultError(
                f"No layer of {type(model).__name__} that matches {fault.layer!r} holds "
                f"{'a parameter' if wanted is None else repr(wanted)}."
            )
    once: dict[tuple[object, ...], _Stored] = {}
    for layer, name, module in places:
        for stored in _plain_tensors(layer, module, name, expand=wanted is None):
            if stored.tensor.numel() or not fault.is_pattern:
                once.setdefault(stored.memory, stored)
    return list(once.values())


def _parameters(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's own parameters."""
    return dict(module.named_parameters(recurse=False))


def _direct_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's own parameters and buffers."""
    return {**_parameters(module), **dict(module.named_buffers(recurse=False))}


def _plain_tensors(layer: str, module: nn.Module, name: str, *, expand: bool) -> list[_Stored]:
    """Return the tensor of a name, or, with ``expand``, all tensors that a tensor subclass of that name is made of."""
    first, *rest = name.split(".")
    if first not in _direct_tensors(module):
        known = ", ".join(_direct_tensors(module)) or "none"
        raise FaultError(f"{layer!r} has no parameter {first!r}; it has: {known}.")
    tensor = _direct_tensors(module)[first]
    for part in rest:
        if part not in inner_names(tensor):
            inner = ", ".join(inner_names(tensor)) or "none"
            raise FaultError(f"{first!r} of {layer!r} holds no {part!r}; it holds: {inner}.")
        tensor = getattr(tensor, part)
    parts = [f"{name}.{part}" for part in inner_names(tensor)]
    if parts and expand:
        return [stored for part in parts for stored in _plain_tensors(layer, module, part, expand=True)]
    if parts:
        raise FaultError(
            f"{name!r} of {layer!r} is a {type(tensor).__name__}, which keeps its values in other tensors. Name one "
            f"of them: {', '.join(parts)}."
        )
    if is_lazy(tensor):
        raise FaultError(f"{name!r} of {layer!r} has no size yet; run the model once.")
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        raise FaultError(
            f"{name!r} of {layer!r} was made under torch.inference_mode(), so PyTorch forbids to write into it. "
            "Enter the inject block under torch.inference_mode() too, or make the model outside of it."
        )
    if tensor.is_meta:
        way = "load the weights first"
        if hasattr(module, "_hf_hook"):
            way = "accelerate loads it for each pass. Call accelerate.hooks.remove_hook_from_submodules(model) first"
        raise FaultError(f"{name!r} of {layer!r} is on the meta device and has no memory; {way}.")
    if kind_of(tensor) is not None or tensor.is_neg():
        kind = kind_of(tensor) or "tensor that is negated lazily"
        raise FaultError(
            f"{name!r} of {layer!r} is a {kind}, which keeps its values in another form. Replace it by a plain "
            "torch.Tensor, such as tensor.dequantize(), tensor.to_dense() or tensor.resolve_neg()."
        )
    word_bits_of(tensor.dtype)
    if any(size > 1 and not stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        raise FaultError(
            f"{name!r} of {layer!r} is expanded: several of its elements share one place in memory, so a fault in one "
            "would be a fault in all of them. Replace the tensor by tensor.clone()."
        )
    return [_Stored(layer, name, tensor)]


def _refuse_frozen_graphs() -> None:
    """Raise InjectionError if Inductor holds a frozen graph: its parameters are constants, so it ignores the fault."""
    if "torch._inductor.freezing" not in sys.modules:
        return
    if _frozen_graph_alive():
        gc.collect()  # A graph that nobody can call any more does not count.
    if _frozen_graph_alive():
        raise InjectionError(
            "A graph that was compiled with freezing is alive. Its parameters are constants, so it would ignore faults "
            "in weights. Call torch.compiler.reset(), and inject into the model that is not compiled."
        )


def _frozen_graph_alive() -> bool:
    """Whether any graph with constant parameters can still be called; its model cannot be known."""
    from torch._inductor.output_code import CompiledFxGraph

    graphs = (kept for kept in gc.get_objects() if type(kept) is CompiledFxGraph)
    return any(getattr(graph, "frozen_param_names", None) for graph in graphs)
