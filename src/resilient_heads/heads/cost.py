"""Count what a model costs: parameters and floating-point operations."""

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.flop_counter import FlopCounterMode

from resilient_heads.errors import ModelError
from resilient_heads.evaluation import evaluating, run_model
from resilient_heads.wrappers import require_module


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters; shared parameters count once.

    Raises:
        ModelError: A lazy parameter has no size yet.
    """
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise ModelError("The model has lazy parameters without a size; wrap or run it first.")
    return sum(parameter.numel() for parameter in model.parameters())


def count_flops(model: nn.Module, example_input: Tensor) -> int:
    """Return the floating-point operations of one forward pass in evaluation mode; the model is unchanged afterwards.

    A multiply-accumulate counts as two operations. The count covers convolutions, matrix products and attention, but
    not element-wise operations.

    Args:
        model: The model.
        example_input: A batch that the model accepts; a batch of one image gives the cost per image.

    Raises:
        ArgumentError: ``model`` is no torch.nn.Module.
        ForwardError: The model cannot run on the batch.
    """
    require_module(model)
    counter = FlopCounterMode(display=False)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter does not see its fused attention
    try:
        with evaluating(model), counter:
            run_model(model, example_input, during="the count of operations")
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops())
