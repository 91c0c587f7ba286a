"""What a fault did to the logits: tensors in, tensors out."""

import torch
from torch import Tensor


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each sample, taken in float64.

    Args:
        logits: ``(N, C)``.
        target: True classes, ``(N,)``, int64 in ``[0, C)``.

    Returns:
        ``(N,)`` float64, in nats. Non-finite logits give NaN or Inf, which are kept.
    """
    wide = logits.double()
    return torch.logsumexp(wide, dim=1) - wide.gather(1, target[:, None])[:, 0]


def delta_loss(golden: Tensor, faulty: Tensor, target: Tensor) -> Tensor:
    """Absolute change in cross-entropy caused by a fault, per sample.

    Args:
        golden: Fault-free logits, ``(N, C)``.
        faulty: Logits under one fault, ``(N, C)``; may hold NaN or Inf.
        target: True classes, ``(N,)``, int64 in ``[0, C)``.

    Returns:
        ``(N,)`` float64, in nats. Non-finite entries are kept, never dropped.

    Source: Mahmoud et al., *Optimizing Selective Protection for CNN Resilience*, ISSRE 2021.
    """
    return (cross_entropy(faulty, target) - cross_entropy(golden, target)).abs()


def top2diff(logits: Tensor) -> Tensor:
    """Difference of the two largest softmax probabilities, per sample.

    Args:
        logits: ``(N, C)`` with C of at least 2.

    Returns:
        ``(N,)`` float64 in ``[0, 1]``.

    Source: *Hardware Resilience Properties of Text-Guided Image Classifiers*, NeurIPS 2023.
    """
    top = logits.double().softmax(dim=1).topk(2, dim=1).values
    return top[:, 0] - top[:, 1]


def confidence(logits: Tensor, classes: Tensor) -> Tensor:
    """Softmax probability of one class per sample.

    Args:
        logits: ``(N, C)``.
        classes: ``(N,)`` int64.

    Returns:
        ``(N,)`` float64.
    """
    return logits.double().softmax(dim=1).gather(1, classes[:, None])[:, 0]


def rank(logits: Tensor, classes: Tensor) -> Tensor:
    """How many other classes score as high as a given one or higher, per sample; 0 means that it alone is on top.

    A tie counts against the class: which of two equal logits ``argmax`` names is an accident of their order.

    Args:
        logits: ``(N, C)``.
        classes: ``(N,)`` int64.

    Returns:
        ``(N,)`` int64; meaningless where logits are NaN.
    """
    at_least = (logits >= logits.gather(1, classes[:, None])).sum(dim=1)
    return (at_least - 1).clamp_min(0)
