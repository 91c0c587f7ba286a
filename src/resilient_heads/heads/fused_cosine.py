"""The cosine head after ``fuse``: one matrix product."""

import torch
from torch import Tensor, nn

from resilient_heads.heads.protection.algebra import SMALLEST_NORM
from resilient_heads.heads.protection.graph import HeadGraph, Product
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
        self._dim = self.graph().dim
        self._sizes = [num_classes, int(layer.weight.shape[0]) - num_classes]

    @property
    def _plain_sites(self) -> tuple[str, ...]:
        """The ``fault_sites`` of the head without protection."""
        return ("layer", "")

    def graph(self) -> HeadGraph:
        """Return what the head computes."""
        return HeadGraph((Product("layer", self.layer),), self.logit_scale, self.num_classes)

    def _compute(self, x: Tensor) -> Tensor:
        """Return the logits, ``(..., C)``, without protection."""
        scores, factor = self.layer(x).split(self._sizes, dim=self._dim)
        norm = torch.linalg.vector_norm(factor, dim=self._dim, keepdim=True).clamp_min(SMALLEST_NORM)
        cosine: Tensor = scores / norm
        return cosine * self.logit_scale.exp().to(cosine.dtype)

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"num_classes={self.num_classes}"
