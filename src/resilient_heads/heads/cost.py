"""What a model costs: parameters and floating-point operations."""

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from resilient_heads.evaluation import evaluating


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, shared ones counted once."""
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
    with evaluating(model), counter:
        model(sample)
    return int(counter.get_total_flops())
