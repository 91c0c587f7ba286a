"""Measures of what a fault did to the logits: tensors in, tensors out."""

import torch
from torch import Tensor

from resilient_heads.errors import ArgumentError


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy of each image, computed in float64.

    Args:
        logits: ``(N, C)``.
        target: True classes, ``(N,)``, int64 in ``[0, C)``.

    Returns:
        ``(N,)`` float64, in nats. Non-finite logits give NaN or Inf, which are kept.

    Raises:
        ArgumentError: ``logits`` or ``target`` is of another kind or shape, or a target is no class.

    >>> cross_entropy(torch.zeros(1, 4), torch.tensor([2]))
    tensor([1.3863], dtype=torch.float64)
    """
    _check_logits("logits", logits)
    _check_target(target, logits)
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

    Raises:
        ArgumentError: An argument is of another kind or shape, or a target is no class.

    >>> delta_loss(torch.zeros(1, 2), torch.tensor([[0.0, 100.0]]), torch.tensor([0]))
    tensor([99.3069], dtype=torch.float64)

    Source: Mahmoud et al., *Optimizing Selective Protection for CNN Resilience*, ISSRE 2021.
    """
    _check_logits("golden", golden)
    _check_logits("faulty", faulty)
    if golden.shape != faulty.shape:
        raise ArgumentError(
            f"golden and faulty must have the same shape; found {tuple(golden.shape)} and {tuple(faulty.shape)}."
        )
    return (cross_entropy(faulty, target) - cross_entropy(golden, target)).abs()


def top2diff(logits: Tensor) -> Tensor:
    """Return the difference of the two largest softmax probabilities, for each image.

    Args:
        logits: ``(N, C)`` with C of at least 2.

    Returns:
        ``(N,)`` float64 in ``[0, 1]``.

    Raises:
        ArgumentError: ``logits`` is of another kind or shape.

    >>> top2diff(torch.tensor([[1.0, 1.0, 0.0]]))
    tensor([0.], dtype=torch.float64)

    Source: *Hardware Resilience Properties of Text-Guided Image Classifiers*, NeurIPS 2023.
    """
    _check_logits("logits", logits)
    if logits.shape[1] < 2:
        raise ArgumentError("logits must have at least 2 classes; found 1.")
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


def _check_logits(name: str, logits: object) -> None:
    """Raise ArgumentError unless logits are a floating tensor ``(N, C)``."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or not logits.is_floating_point():
        found = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ArgumentError(f"{name} must be a floating tensor of shape (images, classes); found {found}.")


def _check_target(target: object, logits: Tensor) -> None:
    """Raise ArgumentError unless targets are classes of the logits; on a GPU the classes are not read."""
    if not isinstance(target, Tensor) or target.shape != logits.shape[:1] or target.dtype != torch.int64:
        found = f"{target.dtype} {tuple(target.shape)}" if isinstance(target, Tensor) else type(target).__name__
        raise ArgumentError(
            f"target must be an int64 tensor of shape ({len(logits)},), one class an image; found {found}."
        )
    if (
        target.device.type == "cpu"
        and len(target)
        and not 0 <= int(target.min()) <= int(target.max()) < logits.shape[1]
    ):
        raise ArgumentError(
            f"target must hold classes from 0 to {logits.shape[1] - 1}; found {int(target.min())} to "
            f"{int(target.max())}."
        )
