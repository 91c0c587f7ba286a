"""The computation of a head as data, so that a guard can repeat it: its matrix products and its scale."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix product of a head.

    Attributes:
        name: Name of the product's fault site.
        layer: Linear or 1x1 Conv2d that holds weight and bias.
        runs: Whether the head runs the layer as a module, whose output is then the fault site of the first computation.
    """

    name: str
    layer: nn.Linear | nn.Conv2d
    runs: bool = True

    def times(self, x: Tensor, *, negate_weight: bool, negate_bias: bool) -> Tensor:
        """Return the product of ``x`` with the weight plus the bias, either of them negated."""
        weight, bias = self.layer.weight, self.layer.bias
        weight = -weight if negate_weight else weight
        bias = -bias if negate_bias and bias is not None else bias
        if isinstance(self.layer, nn.Conv2d):
            return nn.functional.conv2d(x, weight, bias)
        return nn.functional.linear(x, weight, bias)

    def parameters(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Return weight ``(O, K)`` and bias ``(O,)`` or None, rounded to the dtype of the product's result."""
        weight, bias = self.layer.weight.flatten(1).to(dtype), self.layer.bias
        return weight, None if bias is None else bias.to(dtype)


@dataclass(frozen=True, slots=True)
class HeadGraph:
    """What a head computes.

    Attributes:
        products: One or two matrix products.
        log_scale: Learned log scale of a cosine head, or None for a linear head.
        scores: In a fused cosine head, how many outputs of the product are scores; the others give the norm.
    """

    products: tuple[Product, ...]
    log_scale: Tensor | None = None
    scores: int | None = None

    @property
    def dim(self) -> int:
        """The dimension of features and classes."""
        return 1 if isinstance(self.products[0].layer, nn.Conv2d) else -1
