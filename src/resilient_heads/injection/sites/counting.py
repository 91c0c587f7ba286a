"""Count which part of a forward pass the fault sites cover."""

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from resilient_heads.errors import ForwardError
from resilient_heads.evaluation import evaluating, reason_of, run_model
from resilient_heads.injection.sites.coverage import Coverage, Uncovered
from resilient_heads.injection.sites.hooks import watch_sites
from resilient_heads.injection.sites.site import Site

_LISTED = 10
"""Most entries for multiply-accumulates, and for activation bits, in a coverage."""

# fmt: off
_KEEP_VALUES = frozenset({
    "clone", "copy_", "_to_copy", "_unsafe_view", "_reshape_copy", "_reshape_alias", "permute_copy", "transpose_copy",
    "view_copy", "cat", "stack", "flip", "roll", "repeat", "lift_fresh", "channel_shuffle", "pixel_shuffle",
})
"""Operators whose result holds every value of their arguments and computes none."""
_SELECT_VALUES = frozenset({
    "index", "index_select", "gather", "slice_copy", "select_copy", "constant_pad_nd", "reflection_pad1d", "im2col",
    "reflection_pad2d", "replication_pad1d", "replication_pad2d", "reflection_pad3d", "replication_pad3d",
    "masked_fill", "masked_fill_", "where", "zeros_like", "ones_like", "empty_like", "new_zeros", "new_empty",
    "new_ones", "fill_", "zero_", "index_put_", "index_put", "slice_scatter", "select_scatter",
})
"""Operators that may drop values and compute none."""
_UNCOUNTED = frozenset({
    "_native_multi_head_attention", "_transformer_encoder_layer_fwd", "miopen_rnn", "miopen_convolution", "mps_linear",
    "mkldnn_convolution", "mkldnn_linear", "_weight_int8pack_mm", "_weight_int4pack_mm", "_int_mm", "_grouped_mm",
    "_cdist_forward", "_sparse_addmm", "_lstm_mps", "quantized_lstm", "quantized_gru",
})
"""Operators of PyTorch that multiply and accumulate, and that its counter does not know."""
# fmt: on
_HIDING = ("rnn", "lstm", "gru", "attention")
"""Parts of the names of operators that compute sums which their result does not show."""
_AFFINE = frozenset({"add", "add_", "sub", "sub_", "rsub", "mul", "mul_"})
"""Operators that apply a bias or a scale, if all but one of their arguments are constants."""
_HOME = frozenset({"aten", "prim", "prims"})
"""Namespaces of operators that are known; what another one computes is not counted."""


def _rnn_flops(_input: Tensor, *weights: Any, **_: Any) -> int:
    """Return the FLOPs of a recurrent layer: each step multiplies with every matrix."""
    matrices = [weight for weight in weights[:2] if isinstance(weight, Tensor)]
    return 2 * _input.shape[0] * _input.shape[1] * sum(weight.numel() for weight in matrices)


def _cudnn_rnn_flops(_input: Tensor, weights: list[Tensor], *_: Any, **__: Any) -> int:
    """Return the FLOPs of a recurrent layer on a GPU."""
    steps = math.prod(_input.shape[:-1])
    return 2 * steps * sum(weight.numel() for weight in weights if weight.ndim == 2)


def _bilinear_flops(first: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    """Return the FLOPs of a bilinear layer: each row multiplies with the whole weight."""
    return 2 * math.prod(first.shape[:-1]) * weight.numel()


def _vector_flops(*args: Any, **_: Any) -> int:
    """Return the FLOPs of a product with a vector."""
    return 2 * max(arg.numel() for arg in args if isinstance(arg, Tensor))


_FORMULAS: dict[str, Callable[..., int]] = {
    "mkldnn_rnn_layer": _rnn_flops,
    "_cudnn_rnn": _cudnn_rnn_flops,
    "_trilinear": _bilinear_flops,
    "mv": _vector_flops,
    "addmv": _vector_flops,
    "dot": _vector_flops,
}
"""Operators that PyTorch's counter does not know."""


@dataclass(slots=True, eq=False)
class _Operation:
    """An operator that computes or moves values.

    Attributes:
        operator: Its name with its namespace.
        macs: Multiply-accumulates; None for an operator that cannot be counted.
        bits: Bits of its result; 0 if it computes no values.
        numel: Elements of its result.
        module: Position of the module that runs it in :attr:`_Count.modules`.
        sources: The operations that wrote its arguments, with the elements of each argument.
        depends: Whether its result depends on the images.
        is_affine: Whether it only adds constants to one argument or multiplies it by them, as by a bias or a scale.
        covered: Whether a site holds its result.
    """

    operator: str
    macs: float | None
    bits: int
    numel: int
    module: int
    sources: list[tuple["_Operation", int]]
    depends: bool
    is_affine: bool
    covered: bool = False

    @property
    def counts_as_covered(self) -> bool:
        """Whether the multiply-accumulates are covered: fused attention and recurrent layers hide their sums."""
        return self.covered and (self.macs == 0 or not any(kind in self.name for kind in _HIDING))

    @property
    def name(self) -> str:
        """Name without the namespace."""
        return self.operator.partition("::")[2]


class Count(TorchDispatchMode):
    """Notes the operators of a forward pass inside the block, and which of them fault sites cover.

    Args:
        model: The model.
        images: Its input. Results that depend on it are activations.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._modules = [("", model)]
        self._names = {module: name for name, module in model.named_modules()}
        self._stack = [0]
        self._operations: list[_Operation] = []
        self._start = _Operation("", 0, 0, images.numel(), 0, [], True, False)
        self._writers = {_memory(images): self._start}
        self._alive: list[object] = [images]  # so that no new memory gets the address of an old one
        self._thread = threading.get_ident()

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator and note it."""
        kwargs = kwargs or {}
        tensors = [value for value in _flat((*args, *kwargs.values())) if isinstance(value, Tensor)]
        writers = [(self._writers.get(_memory(tensor)), tensor) for tensor in tensors]
        result = func(*args, **kwargs)
        sources = [(writer, tensor.numel()) for writer, tensor in writers if writer is not None]
        results = [value for value in _flat((result,)) if isinstance(value, Tensor)]
        if results and not _is_view(func, tensors, results[0]):
            self._note(func, args, kwargs, result, results, sources)
        return result

    def _note(self, func: Any, args: Any, kwargs: Any, result: Any, results: list[Tensor], sources: Any) -> None:
        """Note an operator that computes or moves values."""
        operator: str = func._schema.name
        home, _, name = operator.partition("::")
        macs: float | None = 0.0
        formula = _FORMULAS.get(name) or flop_registry.get(func._overloadpacket)
        if name == "_scaled_dot_product_flash_attention_for_cpu":
            formula = flop_registry.get(torch.ops.aten._scaled_dot_product_flash_attention)
        depends = sum(source.depends for source, _ in sources)
        if (home not in _HOME or name in _UNCOUNTED) and depends:
            macs = None
        elif formula is not None:
            macs = (formula(*args, **kwargs) if name in _FORMULAS else formula(*args, **kwargs, out_val=result)) / 2
        first = results[0]
        moves = name in _KEEP_VALUES or name in _SELECT_VALUES
        computes = depends and first.dtype.is_floating_point and not moves
        operation = _Operation(
            operator=operator,
            macs=macs,
            bits=first.numel() * first.dtype.itemsize * 8 if computes else 0,
            numel=first.numel(),
            module=self._stack[-1],
            sources=sources,
            depends=depends > 0,
            is_affine=name in _AFFINE and depends == 1,
        )
        self._operations.append(operation)
        for tensor in results:
            self._writers[_memory(tensor)] = operation
            self._alive.append(_reference(tensor))

    def cover(self, tensor: Tensor) -> None:
        """Note that a tensor is a fault site."""
        waiting = [(self._writers.get(_memory(tensor)), tensor.numel())]
        while waiting:
            operation, numel = waiting.pop()
            # A tensor with fewer elements lacks some of the values.
            if operation is None or operation is self._start or numel < operation.numel:
                continue
            operation.covered = True
            if operation.name in _KEEP_VALUES or operation.is_affine:
                waiting += [(source, size) for source, size in operation.sources]

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Follow inside the block which module runs."""

        def enter(module: nn.Module, _inputs: object) -> None:
            if threading.get_ident() == self._thread and module in self._names:
                self._modules.append((self._names[module], module))
                self._stack.append(len(self._modules) - 1)

        def leave(module: nn.Module, _inputs: object, _output: object) -> None:
            if threading.get_ident() == self._thread and self._modules[self._stack[-1]][1] is module:
                self._stack.pop()

        with ExitStack() as handles:
            if any(isinstance(module, torch.jit.ScriptModule) for module in self._names):
                # Hooks of all modules, since a TorchScript module takes none of its own.
                handles.callback(register_module_forward_pre_hook(enter).remove)
                handles.callback(register_module_forward_hook(leave, always_call=True).remove)
            else:
                for module in self._names:
                    handles.callback(module.register_forward_pre_hook(enter).remove)
                    handles.callback(module.register_forward_hook(leave, always_call=True).remove)
            yield

    def coverage(self) -> Coverage:
        """Return what the sites cover."""
        # Where a site holds the result of an unknown operator, the fraction without it is a lower bound.
        unknown = [one for one in self._operations if one.macs is None and not one.counts_as_covered]
        macs = sum(one.macs or 0 for one in self._operations)
        bits = sum(one.bits for one in self._operations)
        covered_macs = sum(one.macs or 0 for one in self._operations if one.counts_as_covered)
        covered_bits = sum(one.bits for one in self._operations if one.covered)
        reason = ""
        if unknown:
            names = ", ".join(dict.fromkeys(one.operator for one in unknown))
            reason = f"PyTorch's counter does not know {names}"
        elif not macs and not any(one.macs is None for one in self._operations):
            reason = "the model multiplies nothing that PyTorch's counter knows"
        return Coverage(
            macs=None if reason else covered_macs / macs if macs else 1.0,
            bits=covered_bits / bits if bits else None,
            uncovered=self._uncovered(macs, bits),
            reason=reason,
        )

    def _uncovered(self, macs: float, bits: int) -> tuple[Uncovered, ...]:
        """Return the operators that are not covered, given the model's totals."""
        groups: dict[tuple[str, str], list[_Operation]] = {}
        for one in self._operations:
            if not one.counts_as_covered and (one.macs is None or one.macs or one.bits):
                module = self._modules[one.module][1]
                kind = "TorchScript" if isinstance(module, torch.jit.ScriptModule) else module._get_name()  # type: ignore[no-untyped-call]
                groups.setdefault((one.operator, kind), []).append(one)
        found = []
        for (operator, kind), operations in groups.items():
            names = dict.fromkeys(self._modules[one.module][0] for one in operations)
            unknown = any(one.macs is None for one in operations)
            found.append(
                Uncovered(
                    operator=operator,
                    module=next(iter(names)),
                    modules=len(names),
                    kind=kind,
                    macs=None if unknown else sum(one.macs or 0 for one in operations) / max(macs, 1),
                    bits=sum(one.bits for one in operations if not one.covered) / max(bits, 1),
                )
            )
        multiplying = sorted(
            (one for one in found if one.macs != 0), key=lambda one: -(math.inf if one.macs is None else one.macs)
        )
        others = sorted((one for one in found if one.macs == 0), key=lambda one: -one.bits)
        return (*multiplying[:_LISTED], *others[:_LISTED])


def coverage_of(model: nn.Module, images: Tensor, sites: Sequence[Site]) -> Coverage:
    """Run the model once, and return how much of its computation some sites hold.

    Args:
        model: The model.
        images: Its input, which no one else uses.
        sites: The sites.
    """
    count = Count(model, images)
    try:
        cover = watch_sites(model, sites, lambda _, tensor: count.cover(tensor))
        with evaluating(model), count, count.naming(), cover:
            run_model(model, images, during="the count of operations")
        return count.coverage()
    except Exception as error:  # an exotic tensor or operator: better no figure than no campaign
        cause = error.__cause__ if isinstance(error, ForwardError) else error
        return Coverage(macs=None, bits=None, reason=f"counting ended with {reason_of(cause)}")


def _flat(values: Any) -> Iterator[Any]:
    """Yield the values within lists and tuples."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value


def _is_view(func: Any, tensors: list[Tensor], result: Tensor) -> bool:
    """Return whether an operator only shows memory of its arguments in another way."""
    mutable = func._schema.is_mutable and torch.Tag.inplace_view not in func.tags
    return not mutable and any(_memory(tensor) == _memory(result) for tensor in tensors)


def _memory(tensor: Tensor) -> int:
    """Return a number for the memory of a tensor, the same for its views."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):  # sparse and opaque tensors, and subclasses without memory
        return -id(tensor)


def _reference(tensor: Tensor) -> object:
    """Return an object that reserves the address of a tensor's memory, and holds no memory where that is possible."""
    try:
        return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
    except (RuntimeError, NotImplementedError):
        return tensor
