"""The cosine head after ``fuse``: one matrix product."""

import torch
from torch import Tensor, nn

from resilient_heads.heads.protection.graph import SMALLEST_NORM, HeadGraph, Product
from resilient_heads.heads.protection.layers import Protectable


class FusedCosineHead(Protectable):
    """A cosine head as one matrix product; its logits are those of the unfused head up to rounding.

    ``layer`` returns C scores and then K numbers, whose norm is the norm of the latent vector
    (:mod:`resilient_heads.heads.fusion`).

    Args:
        layer: Linear or 1x1 convolution with ``C + K`` outputs.
        num_classes: C.
        logit_scale: The head's learned log scale, ``(1,)``.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, num_classes: int, logit_scale: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.num_classes = num_classes
        self.class_names: tuple[str, ...] | None = None
        self.guard = None
        self.logit_scale = nn.Parameter(logit_scale.detach().clone(), requires_grad=logit_scale.requires_grad)
        self._dim = 1 if isinstance(layer, nn.Conv2d) else -1
        self._sizes = [num_classes, int(layer.weight.shape[0]) - num_classes]

    @property
    def fault_sites(self) -> tuple[str, ...]:
        """Names of the modules whose outputs are this head's tensors, in order; ``""`` is the head itself."""
        return ("layer", "") if self.guard is None else self.guarded_sites()

    def graph(self) -> HeadGraph:
        """Return what the head computes."""
        return HeadGraph((Product("layer", self.layer),), self.logit_scale, self.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, ``(..., C)``."""
        if self.guard is not None and not self.training:
            return self.guard.run(self.graph(), x, self._dim)
        scores, factor = self.layer(x).split(self._sizes, dim=self._dim)
        norm = torch.linalg.vector_norm(factor, dim=self._dim, keepdim=True).clamp_min(SMALLEST_NORM)
        cosine: Tensor = scores / norm
        return cosine * self.logit_scale.exp().to(cosine.dtype)

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"num_classes={self.num_classes}"


def layer_of(weight: Tensor, bias: Tensor | None, *, conv: bool) -> nn.Linear | nn.Conv2d:
    """Return a Linear, or a 1x1 Conv2d, with these tensors as weight and bias."""
    out_features, in_features = weight.shape
    layer = (
        nn.Conv2d(in_features, out_features, 1, device="meta")
        if conv
        else nn.Linear(in_features, out_features, device="meta")
    )
    layer.weight = nn.Parameter(weight[:, :, None, None] if conv else weight)
    layer.bias = None if bias is None else nn.Parameter(bias)
    return layer
