"""A forward pass as data: its operations in order, and the memory that they read and write."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor


class ControlFlowError(Exception):
    """The operations after a tensor cannot be run again on their own; the message says why."""


class BufferVersion(NamedTuple):
    """The content of a memory block between two writes.

    Attributes:
        buffer: Number of the block, in the order of first use.
        version: Number of operations that had written to the block before.
    """

    buffer: int
    version: int


GoldenContent = Mapping[BufferVersion, Tensor]
"""The content of a golden pass."""


@dataclass(frozen=True, slots=True)
class View:
    """A tensor as a window onto a memory block.

    Attributes:
        buffer, version: See :class:`BufferVersion`.
        dtype: Of the elements.
        size, stride, offset: Of the tensor, in elements.
    """

    buffer: int
    version: int
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @property
    def content(self) -> BufferVersion:
        """The content that the tensor shows."""
        return BufferVersion(self.buffer, self.version)

    def on(self, memory: Tensor) -> Tensor:
        """Return this view of the memory behind a tensor, also of the part that the tensor does not show."""
        if not is_plain(memory):
            return memory
        if memory.dtype == self.dtype:
            return memory.as_strided(self.size, self.stride, self.offset)
        blank = torch.empty(0, dtype=self.dtype, device=memory.device)
        return blank.set_(memory.untyped_storage(), self.offset, self.size, self.stride)


@dataclass(frozen=True, slots=True)
class Opaque:
    """An argument or a result that is neither a tensor nor a plain value, such as packed weights or a profiler's mark.

    All objects of one class are equal, since each pass may make its own. What such an object holds is unknown, so no
    operation with one is run again.
    """

    kind: str


@dataclass(frozen=True, slots=True)
class Step:
    """One operation of a pass.

    Attributes:
        func: The ATen operator.
        args: Its positional arguments; each tensor, also in a list, is replaced by its view, and each object by an
            :class:`Opaque`.
        kwargs: Its keyword arguments, likewise.
        outputs: Views of its results; None for a result that is no tensor.
        opaque: Whether an argument or a result is :class:`Opaque`.
        views: Views of its tensor arguments, in order.
        reads: Buffers of its tensor arguments.
        writes: Those of ``reads`` that it writes to.
        creates: Buffers that it makes.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    outputs: tuple[View | None, ...]
    views: tuple[View, ...]
    reads: frozenset[int]
    writes: frozenset[int]
    creates: frozenset[int]
    opaque: bool = False

    @property
    def operator(self) -> str:
        """Name of the operator, such as ``"convolution"``; overloads of one operator share it."""
        name: str = self.func._schema.name
        return name.removeprefix("aten::")

    @property
    def is_view(self) -> bool:
        """Whether the operation only shows the same memory in another way."""
        return not self.writes and not self.creates and any(view is not None for view in self.outputs)

    def argument(self, name: str) -> Any:
        """Return an argument, or its default, by the name that it has in the operator's schema."""
        for position, argument in enumerate(self.func._schema.arguments):
            if argument.name == name:
                given = self.args[position:] or tuple(value for key, value in self.kwargs if key == name)
                return given[0] if given else argument.default_value
        raise KeyError(f"{self.func} has no argument {name!r}")

    def args_with(self, **values: object) -> tuple[Any, ...]:
        """Return the positional arguments with some replaced by name; arguments at their default stay so."""
        names = [argument.name for argument in self.func._schema.arguments]
        return tuple(values.get(name, value) for name, value in zip(names, self.args, strict=False))


@dataclass(frozen=True, slots=True)
class MarkedTensor:
    """A tensor that the caller marked while the pass ran.

    Attributes:
        view: The tensor.
        steps_before: Number of operations before the mark.
    """

    view: View
    steps_before: int


@dataclass(slots=True)
class Tape:
    """A recorded forward pass.

    Attributes:
        steps: The operations, in order.
        marks: By name, the tensors that the caller marked; a name used several times has several.
        bases: For each buffer, the tensor through which the pass first saw it.
        external: Buffers that exist before the pass: inputs, weights, constants.
        dense: Buffers whose base shows every element of the memory exactly once.
        logits: The result.
        obstacle: Why no part of the pass can be run again; None if it can.
    """

    steps: list[Step] = field(default_factory=list)
    marks: dict[str, list[MarkedTensor]] = field(default_factory=dict)
    bases: list[View] = field(default_factory=list)
    external: set[int] = field(default_factory=set)
    dense: set[int] = field(default_factory=set)
    logits: View | None = None
    obstacle: str | None = None

    def same_operators(self, other: "Tape") -> bool:
        """Return whether another pass ran the same operators in the same order."""
        return [step.func for step in self.steps] == [step.func for step in other.steps]


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor is strided memory and nothing else: no subclass, not sparse, nested or quantised."""
    plain = type(tensor) is Tensor or type(tensor) is torch.nn.Parameter
    return plain and tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_nested


def kind_of(tensor: Tensor) -> str | None:
    """Return what a tensor is that does not hold its values itself in strided memory; None for one that does."""
    if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return type(tensor).__name__
    if tensor.is_nested:
        return "nested tensor"
    if tensor.is_quantized:
        return "quantised tensor"
    return None if tensor.layout == torch.strided else f"{str(tensor.layout).split('.')[-1]} tensor"


def size_of(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape of a tensor; that of a nested tensor, which may have none, is empty."""
    return () if tensor.is_nested else tuple(tensor.shape)


def copy_memory(tensor: Tensor) -> Tensor:
    """Return a tensor like the given one on a copy of all memory behind it."""
    copied = tensor.untyped_storage().clone()  # type: ignore[no-untyped-call]
    blank = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return blank.set_(copied, tensor.storage_offset(), tensor.size(), tensor.stride())


def replace_views(argument: Any, tensor_of: Callable[[View], Any]) -> Any:
    """Return a recorded argument with each view replaced by the tensor that ``tensor_of`` gives for it."""
    if isinstance(argument, View):
        return tensor_of(argument)
    if isinstance(argument, list | tuple):
        return [replace_views(item, tensor_of) for item in argument]
    return argument


def flat_views(argument: Any) -> list[View]:
    """Return the views within a recorded argument, in order."""
    if isinstance(argument, View):
        return [argument]
    return [view for item in argument for view in flat_views(item)] if isinstance(argument, tuple) else []


def flat_tensors(argument: Any) -> list[Tensor]:
    """Return the tensors within an argument, in order."""
    if isinstance(argument, Tensor):
        return [argument]
    return [tensor for item in argument for tensor in flat_tensors(item)] if isinstance(argument, list | tuple) else []


def as_list(result: Any) -> list[Any]:
    """Return the results of an operation as one flat list."""
    return [part for item in result for part in as_list(item)] if isinstance(result, list | tuple) else [result]
