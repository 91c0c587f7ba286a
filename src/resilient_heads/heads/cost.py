"""What a model costs: parameters and floating-point operations."""

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.flop_counter import FlopCounterMode

from resilient_heads.errors import ModelError
from resilient_heads.evaluation import evaluating


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, shared ones counted once.

    Raises:
        ModelError: A lazy parameter has no size yet.
    """
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise ModelError("The model has lazy parameters without a size; wrap or run it first.")
    return sum(parameter.numel() for parameter in model.parameters())


def count_flops(model: nn.Module, sample: Tensor) -> int:
    """Return the floating-point operations of one forward pass in evaluation mode; the model is left as it was.

    A multiply-accumulate counts as two. Convolutions, matrix products and attention are counted; element-wise work is
    not.

    Args:
        model: The model.
        sample: A batch as the model takes it; give one image for the cost of one.
    """
    counter = FlopCounterMode(display=False)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused attention cannot be counted
    try:
        with evaluating(model), counter:
            model(sample)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops())
