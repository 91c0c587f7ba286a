"""The ATen operators for which an equivalence check on one batch holds for every batch."""

from resilient_heads.incremental.recording.tape import Step

# fmt: off
ELEMENTWISE = frozenset({
    "relu", "relu_", "threshold", "clamp", "clamp_", "clamp_min", "clamp_max", "hardtanh", "hardtanh_",
    "hardswish", "hardswish_", "hardsigmoid", "hardsigmoid_", "leaky_relu", "leaky_relu_", "add", "add_",
    "sub", "sub_", "mul", "mul_", "div", "div_", "neg", "abs", "max_pool2d_with_indices", "cat", "stack",
    "clone", "copy_", "_to_copy", "flip", "roll", "index", "index_select", "gather", "constant_pad_nd",
    "reflection_pad2d", "upsample_nearest2d", "masked_fill", "masked_fill_", "where", "fill_", "zero_",
})
"""Operators that do not round, or round every element alike, wherever it lies. The batch size can change a result only
through their arguments, so a check shows it on any values."""
REDUCTIONS = frozenset({
    "convolution", "addmm", "mm", "bmm", "baddbmm", "linear", "sum", "mean", "amax", "amin",
    "linalg_vector_norm", "avg_pool2d", "_adaptive_avg_pool2d", "native_batch_norm",
    "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "native_layer_norm", "native_group_norm",
    "_softmax", "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
})
"""Operators that add up in an order which may depend on the batch size, but not on the values: a check on enough random
values shows it for all values."""
# fmt: on
# All other operators run on the full batch. Some of them (sigmoid, GELU, exp) compute full vectors in one way and the
# remaining elements in another; the two differ in the last bit, for a few values only.


def can_be_checked(step: Step) -> bool:
    """Return whether a check on one batch shows that an operation gives the same bits for every batch."""
    kind = step.operator
    if kind in REDUCTIONS:
        return True
    kwargs = dict(step.kwargs)
    # With a third argument, a factor or a rounding mode, these compute full vectors and remaining elements differently.
    simple = len(step.args) < 3 and kwargs.get("alpha", 1) == 1 and kwargs.get("rounding_mode") is None
    return kind in ELEMENTWISE and (simple or kind.rstrip("_") not in ("add", "sub", "div"))
