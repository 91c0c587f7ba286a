"""What counts as a layer: a module whose output is a fault site, and part of the scope ``network``."""

from torch import Tensor, nn

_KINDS = (
    nn.modules.conv._ConvNd,
    nn.Linear,
    nn.Bilinear,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
)
_KINDS_BY_NAME = frozenset(
    {
        ("transformers.pytorch_utils", "Conv1D"),
        ("torch.ao.nn.quantized.modules.utils", "WeightedQuantizedModule"),
        ("torch.ao.nn.quantized.dynamic.modules.rnn", "RNNBase"),
        ("torch.ao.nn.quantized.dynamic.modules.rnn", "RNNCellBase"),
    }
)
"""Classes that need not be installed or imported: module and name."""

_WEIGHTS = ("weight", "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def is_layer(module: nn.Module) -> bool:
    """Return whether a module is a layer: a convolution, a linear or recurrent layer, an embedding, an attention."""
    return isinstance(module, _KINDS) or any(
        (kind.__module__, kind.__qualname__) in _KINDS_BY_NAME for kind in type(module).__mro__
    )


def weights_of(module: nn.Module) -> tuple[Tensor, ...]:
    """Return the weights of a layer with which a model may multiply without running the layer; () for other modules."""
    if not is_layer(module):
        return ()
    weights = (getattr(module, name, None) for name in _WEIGHTS)
    return tuple(weight for weight in weights if isinstance(weight, Tensor))
