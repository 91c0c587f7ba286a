"""What one forward pass did: its operations in order, and the memory that they read and wrote."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Moment = tuple[int, int]
"""A buffer and its version: the content of a piece of memory between two writes."""


class ControlFlowError(Exception):
    """What comes after a tensor cannot be run again by itself; the message says why."""


@dataclass(frozen=True, slots=True)
class View:
    """How a tensor looks at a buffer.

    Attributes:
        buffer: Number of the memory block, in the order of first use.
        version: How often the block had been written to.
        dtype: Of the elements.
        size, stride, offset: As of the tensor, in elements.
    """

    buffer: int
    version: int
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @property
    def moment(self) -> Moment:
        """The content that is seen."""
        return self.buffer, self.version

    def on(self, root: Tensor) -> Tensor:
        """Return this view of the memory behind ``root``, whatever part of it ``root`` shows."""
        if not is_plain(root):
            return root
        if root.dtype == self.dtype:
            return root.as_strided(self.size, self.stride, self.offset)
        blank = torch.empty(0, dtype=self.dtype, device=root.device)
        return blank.set_(root.untyped_storage(), self.offset, self.size, self.stride)


@dataclass(frozen=True, slots=True)
class Step:
    """One operation.

    Attributes:
        func: The ATen operator.
        args: Its arguments; tensors are given as views, also within lists.
        kwargs: Likewise, by name.
        outputs: Views of its results, None for what is no tensor.
        views: Its tensor arguments, in order.
        reads: Their buffers.
        writes: Those among them that it writes to.
        creates: Buffers that it made.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    outputs: tuple[View | None, ...]
    views: tuple[View, ...]
    reads: frozenset[int]
    writes: frozenset[int]
    creates: frozenset[int]

    @property
    def is_view(self) -> bool:
        """Whether it only looks at memory in another way."""
        return not self.writes and not self.creates and any(view is not None for view in self.outputs)


@dataclass(frozen=True, slots=True)
class Mark:
    """A tensor that was pointed out while the pass ran.

    Attributes:
        view: The tensor.
        position: Number of steps before it.
    """

    view: View
    position: int


@dataclass(slots=True)
class Tape:
    """A forward pass.

    Attributes:
        steps: In order.
        marks: Tensors that were pointed out, by name; one for each time.
        roots: For each buffer, the tensor through which it was first seen.
        external: Buffers that the pass found and did not make: inputs, weights, constants.
        whole: Buffers of which ``roots`` shows every element once.
        images: The buffer of the images.
        logits: The result.
        obstacle: Why the pass cannot be run again in part, or None; with the number of steps before it.
    """

    steps: list[Step] = field(default_factory=list)
    marks: dict[str, list[Mark]] = field(default_factory=dict)
    roots: list[View] = field(default_factory=list)
    external: set[int] = field(default_factory=set)
    whole: set[int] = field(default_factory=set)
    images: int = 0
    logits: View | None = None
    obstacle: tuple[int, str] | None = None


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is strided memory and nothing else: no subclass, not sparse, not quantised."""
    plain = type(tensor) is Tensor or type(tensor) is torch.nn.Parameter
    return plain and tensor.layout == torch.strided and not tensor.is_quantized


def replace_views(template: Any, tensor: Any) -> Any:
    """Return an argument with its views replaced by what ``tensor`` gives for each."""
    if isinstance(template, View):
        return tensor(template)
    if isinstance(template, list | tuple):
        return [replace_views(item, tensor) for item in template]
    return template


def flat_views(value: Any) -> list[View]:
    """Return the views within an argument, in order."""
    if isinstance(value, View):
        return [value]
    if isinstance(value, tuple):
        return [view for item in value for view in flat_views(item)]
    return []


def flat_tensors(value: Any) -> list[Tensor]:
    """Return the tensors within an argument, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in flat_tensors(item)]
    return []
