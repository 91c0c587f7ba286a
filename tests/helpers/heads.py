"""Heads and class embeddings with random numbers."""

import torch
from torch import Tensor, nn

from resilient_heads.heads.text_guided import TextGuidedHead
from resilient_heads.text.embeddings import ClassEmbeddings


def random_embeddings(classes: int = 10, dimensions: int = 12) -> ClassEmbeddings:
    """Make rows with a common mean, as real embeddings have."""
    return ClassEmbeddings(torch.randn(classes, dimensions) + 0.5, tuple(f"name {i}" for i in range(classes)))


def randomized(head: TextGuidedHead) -> TextGuidedHead:
    """Move every parameter away from its start, so that unit rows and the initial scale hide nothing."""
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return head


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copy a model's state dict."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
