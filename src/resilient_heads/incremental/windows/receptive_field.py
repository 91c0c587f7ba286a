"""The receptive fields of convolutions and poolings."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from resilient_heads.incremental.recording.tape import Step
from resilient_heads.incremental.windows.crops import IntArray, Size


@dataclass(frozen=True, slots=True)
class ReceptiveField:
    """The inputs that each output of a convolution or pooling reads, along height and width.

    Attributes:
        kernel: Extent of the kernel, with the gaps of its dilation.
        stride, padding: Of the operator.
        fill: Value of the padding.
    """

    kernel: Size
    stride: Size
    padding: Size
    fill: float

    def outputs_reached(self, size: Size) -> Size:
        """Return the size of the outputs that a window of inputs can reach."""
        return as_size((n + k - 2) // s + 1 for n, k, s in zip(size, self.kernel, self.stride, strict=True))

    def first_output(self, origin: IntArray) -> IntArray:
        """Return the first output, ``(n, 2)``, that reads an input at or after ``origin``."""
        offset = as_size(p - k + s for k, s, p in zip(self.kernel, self.stride, self.padding, strict=True))
        return (origin + offset) // self.stride

    def first_input(self, origin: IntArray) -> IntArray:
        """Return the first input, ``(n, 2)``, that the output at ``origin`` reads; negative if it is padding."""
        inputs: IntArray = origin * self.stride - self.padding
        return inputs

    def inputs_read(self, size: Size) -> Size:
        """Return the size of the inputs that a window of outputs reads."""
        return as_size((n - 1) * s + k for n, k, s in zip(size, self.kernel, self.stride, strict=True))


@dataclass(frozen=True, slots=True)
class _SlidingOperator:
    """How to read the receptive field off the arguments of an operator, by their names in its schema.

    Attributes:
        kernel_size: Returns height and width of the kernel; None if the operation has no two-dimensional kernel.
        fill: Value of the padding.
        unpadded: Arguments that switch the padding off.
    """

    kernel_size: Callable[[Step], Any]
    fill: float
    unpadded: dict[str, object]


def _convolution_kernel(step: Step) -> Any:
    weight = step.argument("weight")
    return None if step.argument("transposed") or len(weight.size) != 4 else weight.size[2:]


_SLIDING_OPERATORS = {
    "convolution": _SlidingOperator(_convolution_kernel, 0.0, {"padding": [0, 0]}),
    "max_pool2d_with_indices": _SlidingOperator(
        lambda step: step.argument("kernel_size"), -torch.inf, {"padding": [0, 0], "ceil_mode": False}
    ),
}


def receptive_field_of(step: Step) -> ReceptiveField | None:
    """Return the receptive field of a two-dimensional convolution or max pooling; None for other operations."""
    operator = _SLIDING_OPERATORS.get(step.operator)
    kernel = None if operator is None else _height_and_width(operator.kernel_size(step))
    if operator is None or kernel is None:
        return None
    stride = _height_and_width(step.argument("stride")) or kernel  # the default of a pooling is its kernel size
    padding, dilation = (_height_and_width(step.argument(name)) for name in ("padding", "dilation"))
    if padding is None or dilation is None:
        return None
    extent = as_size((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    return ReceptiveField(extent, stride, padding, operator.fill)


def args_without_padding(step: Step) -> tuple[Any, ...]:
    """Return the arguments of a convolution or pooling with the padding switched off."""
    return step.args_with(**_SLIDING_OPERATORS[step.operator].unpadded)


def as_size(values: Any) -> Size:
    """Return two numbers as height and width."""
    height, width = values
    return int(height), int(width)


def _height_and_width(value: Any) -> Size | None:
    """Return an argument that may be one number for both, or two; None if it is missing or empty."""
    values = [value] if isinstance(value, int) else value
    return as_size((values[0], values[-1])) if values else None
