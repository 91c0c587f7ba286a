"""Measures of what a fault did to the logits: tensors in, tensors out."""

import torch
from torch import Tensor


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy of each image, computed in float64.

    Args:
        logits: ``(N, C)``.
        target: True classes, ``(N,)``, int64 in ``[0, C)``.

    Returns:
        ``(N,)`` float64, in nats. Non-finite logits give NaN or Inf, which are kept.

    >>> cross_entropy(torch.zeros(1, 4), torch.tensor([2]))
    tensor([1.3863], dtype=torch.float64)
    """
    wide = logits.double()
    return torch.logsumexp(wide, dim=1) - wide.gather(1, target[:, None])[:, 0]


def delta_loss(golden: Tensor, faulty: Tensor, target: Tensor) -> Tensor:
    """Return the absolute change in cross-entropy that a fault causes, for each image.

    Args:
        golden: Fault-free logits, ``(N, C)``.
        faulty: Logits under one fault, ``(N, C)``; may hold NaN or Inf.
        target: True classes, ``(N,)``, int64 in ``[0, C)``.

    Returns:
        ``(N,)`` float64, in nats. Non-finite entries are kept, never dropped.

    >>> delta_loss(torch.zeros(1, 2), torch.tensor([[0.0, 100.0]]), torch.tensor([0]))
    tensor([99.3069], dtype=torch.float64)

    Source: Mahmoud et al., *Optimizing Selective Protection for CNN Resilience*, ISSRE 2021.
    """
    return (cross_entropy(faulty, target) - cross_entropy(golden, target)).abs()


def top2diff(logits: Tensor) -> Tensor:
    """Return the difference of the two largest softmax probabilities, for each image.

    Args:
        logits: ``(N, C)`` with C of at least 2.

    Returns:
        ``(N,)`` float64 in ``[0, 1]``.

    >>> top2diff(torch.tensor([[1.0, 1.0, 0.0]]))
    tensor([0.], dtype=torch.float64)

    Source: *Hardware Resilience Properties of Text-Guided Image Classifiers*, NeurIPS 2023.
    """
    top = logits.double().softmax(dim=1).topk(2, dim=1).values
    return top[:, 0] - top[:, 1]


def confidence(logits: Tensor, classes: Tensor) -> Tensor:
    """Return the softmax probability of each image's class: ``(N, C)`` and ``(N,)`` int64 to ``(N,)`` float64."""
    return logits.double().softmax(dim=1).gather(1, classes[:, None])[:, 0]


def rank(logits: Tensor, classes: Tensor) -> Tensor:
    """Return how many other classes score at least as high as each image's class: ``(N,)`` int64, 0 for a clear winner.

    A tie counts against the class, because the order of equal logits decides which of them ``argmax`` returns. Rows
    with NaN have no defined rank.
    """
    at_least = (logits >= logits.gather(1, classes[:, None])).sum(dim=1)
    return (at_least - 1).clamp_min(0)
