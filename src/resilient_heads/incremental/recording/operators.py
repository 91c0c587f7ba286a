"""Which operators may be tried at another size, and on what."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from resilient_heads.incremental.recording.tape import Step

# fmt: off
EXACT = frozenset({
    "relu", "relu_", "threshold", "clamp", "clamp_", "clamp_min", "clamp_max", "hardtanh", "hardtanh_",
    "hardswish", "hardswish_", "hardsigmoid", "hardsigmoid_", "leaky_relu", "leaky_relu_", "add", "add_",
    "sub", "sub_", "mul", "mul_", "div", "div_", "neg", "abs", "max_pool2d_with_indices", "cat", "stack",
    "clone", "copy_", "_to_copy", "flip", "roll", "index", "index_select", "gather", "constant_pad_nd",
    "reflection_pad2d", "upsample_nearest2d", "masked_fill", "masked_fill_", "where", "fill_", "zero_",
})
"""ATen operators that round nothing, or every element alike, wherever it lies: they depend on the batch by their
arguments at most."""
TRIED = frozenset({
    "convolution", "addmm", "mm", "bmm", "baddbmm", "linear", "sum", "mean", "amax", "amin",
    "linalg_vector_norm", "avg_pool2d", "_adaptive_avg_pool2d", "native_batch_norm",
    "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "native_layer_norm", "native_group_norm",
    "_softmax", "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
})
"""Those that add up in an order which may depend on the size of the batch, but not on the values: trying them on one
batch shows it for all."""
# fmt: on
# All others see the whole batch: some take one path for full vectors and another for what is left over, which differ in
# the last bit for some values only (sigmoid, GELU, exp).

_ENOUGH = 4096
"""Elements in which two results must have the same bits: of sums added up in another order, half differ."""
_ENOUGH_SHORT = 65_536
"""Likewise where results are rounded to 16 bits or fewer, in which one such sum in ten thousand differs."""
_MOST_ROUNDS = 32
_DRAWN = 65_537


def trial_tells(kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether trying an operator on one batch shows for all whether it gives the same bits."""
    if kind in TRIED:
        return True
    # With a factor, or rounded, these have one path for full vectors and another for what is left over.
    plain = kwargs.get("alpha", 1) == 1 and len(args) < 3 and kwargs.get("rounding_mode") is None
    return kind in EXACT and (plain or kind.rstrip("_") not in ("add", "sub", "div"))


def fits(step: Step, func: Any, tensors: Sequence[Tensor]) -> bool:
    """Whether an operation that runs is the one that was recorded, and not one whose failure the model will catch."""
    return step.func is func and [view.size for view in step.views] == [tuple(tensor.shape) for tensor in tensors]


def enough(dtype: torch.dtype) -> int:
    """Return how many results of a type have to be compared."""
    return _ENOUGH_SHORT if dtype.itemsize <= 2 else _ENOUGH


def rounds(kind: str, elements: int, dtype: torch.dtype) -> int | None:
    """Return how many trials on random values an operator needs, whatever was seen on the values of a real pass.

    Those may be zeros, or few, or round numbers, whose sums have the same bits in any order.

    Args:
        kind: Its name.
        elements: How many are compared in one trial.
        dtype: Their type.

    Returns:
        None: so many that it is not tried.
    """
    if kind not in TRIED:
        return 0
    needed = math.ceil(enough(dtype) / max(elements, 1))
    if needed <= _MOST_ROUNDS:
        return needed
    return _MOST_ROUNDS if enough(dtype) == _ENOUGH else None


def noise_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Return random values in the layout of a tensor; its own where they are no numbers with a point."""
    if not tensor.dtype.is_floating_point:
        return tensor.clone()
    count = tensor.numel()
    # Drawing takes longer than what is tried; repeated after a prime number, values lie elsewhere in each image.
    precise = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    drawn = torch.randn(min(count, _DRAWN), generator=generator, dtype=precise)
    values = drawn.repeat(-(-count // _DRAWN))[:count]
    noise = values.view(tensor.shape).to(device=tensor.device, dtype=tensor.dtype)
    return torch.empty_like(tensor).copy_(noise) if _dense(tensor) else noise


def _dense(tensor: Tensor) -> bool:
    """Whether memory like that of a tensor has no gaps, so that its strides are kept."""
    return torch.empty_like(tensor).stride() == tensor.stride()
