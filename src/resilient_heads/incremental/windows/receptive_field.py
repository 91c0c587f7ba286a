"""The receptive fields of convolutions and poolings."""

from collections.abc import Sequence
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


def receptive_field_of(step: Step) -> ReceptiveField | None:
    """Return the receptive field of a two-dimensional convolution or max pooling; None for other operations."""
    if step.operator == "convolution":
        kernel, fill = step.argument("weight").size[2:], 0.0
        if step.argument("transposed") or len(kernel) != 2:
            return None
    elif step.operator == "max_pool2d_with_indices":
        kernel, fill = _height_and_width(step.argument("kernel_size")), -torch.inf
    else:
        return None
    stride = _height_and_width(step.argument("stride") or kernel)  # a pooling's stride is its kernel size by default
    padding, dilation = (_height_and_width(step.argument(name)) for name in ("padding", "dilation"))
    extent = as_size((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    return ReceptiveField(extent, stride, padding, fill)


def as_size(values: Any) -> Size:
    """Return two numbers as height and width."""
    height, width = values
    return int(height), int(width)


def _height_and_width(value: int | Sequence[int]) -> Size:
    """Return an argument that may be one number for both, or two."""
    values = [value] if isinstance(value, int) else value
    return int(values[0]), int(values[-1])
