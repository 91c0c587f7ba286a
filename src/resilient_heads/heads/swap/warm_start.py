"""Start a head so that it decides as a trained classifier does.

With projection ``P (C, E)`` and classifier ``y = W x + b``, the best latent layer for every input is ``P^+ W`` and
``P^+ b``: the least-squares solution of ``P z = W x + b``, for any distribution of the features.

- If the rows of ``P`` are independent, which requires C <= E, ``P z`` are the classifier's scores.
- Otherwise both sides are centred over the classes first, because adding one number to all scores of an image changes
  no decision. The part of the scores outside the span of ``P`` is lost.

A cosine head divides the scores of an image by one positive number, ``||z||``. Its decisions are those of the scores,
but its confidences differ.
"""

import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resilient_heads.errors import ModelError
from resilient_heads.evaluation import evaluating, run_model
from resilient_heads.heads.find.candidates import Classifier, Leaf
from resilient_heads.heads.swap.undo import all_or_nothing
from resilient_heads.heads.text_guided import TextGuidedHead

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """How well a head reproduces a classifier.

    Attributes:
        exact: Whether the rows of the projection are independent, so that the decisions are equal up to rounding.
        rank: Rank of the projection.
        lost: Fraction of the classifier's variation between classes that the head cannot express, 0 to 1:
            ``||W' - P L||^2 / ||W'||^2`` with ``W' = [W b]``, both centred over the classes.
        agreement: Fraction of the given features on which both decide alike, or None without features.
        images: Number of features on which the agreement was measured.
    """

    exact: bool
    rank: int
    lost: float
    agreement: float | None
    images: int


@torch.no_grad()
def warm_start_(head: TextGuidedHead, classifier: Leaf, features: Tensor | None = None) -> WarmStart:
    """Set a head's latent layer in place, so that the head decides as a trained classifier does.

    The projection stays at the class embeddings.

    Args:
        head: A head with the classifier's features and classes.
        classifier: The trained Linear or 1x1 Conv2d.
        features: Inputs of the classifier, ``(N, F)``. With them, the agreement is measured, and a cosine head's scale
            is set so that its logits come closest to the classifier's scores (least squares).

    Returns:
        How well the head reproduces the classifier.

    Raises:
        ModelError: Sizes differ, a value is not finite, or the classifier has a bias and the head has none. The head is
            unchanged then.

    >>> import torch, resilient_heads as rh
    >>> head, classifier = rh.TextGuidedHead(8, rh.load_embeddings("cifar10")), torch.nn.Linear(8, 10)
    >>> rh.heads.warm_start_(head, classifier, features=torch.randn(100, 8)).agreement
    1.0
    """
    weight, bias, projection = _matrices(head, classifier)
    latent, inputs = head.latent, weight.shape[1]
    if features is not None:
        if features.ndim != 2 or features.shape[1] != inputs or not len(features):
            raise ModelError(f"features must be (N, {inputs}) with N > 0, found {tuple(features.shape)}.")
        features = features.detach().cpu().double()
    target = weight if bias is None else torch.cat([weight, bias[:, None]], dim=1)
    rank = int(torch.linalg.matrix_rank(projection))
    exact = rank == projection.shape[0]
    centred = target - target.mean(dim=0)
    if exact:
        solution = torch.linalg.pinv(projection) @ target
    else:
        solution = torch.linalg.pinv(projection - projection.mean(dim=0)) @ centred
    reproduced = projection @ solution
    total = centred.square().sum()
    lost = (centred - (reproduced - reproduced.mean(dim=0))).square().sum() / total if total > 0 else total
    with all_or_nothing(head, head):
        latent.weight.copy_(solution[:, :inputs].reshape(latent.weight.shape))
        if latent.bias is not None:
            latent.bias.copy_(solution[:, inputs] if bias is not None else torch.zeros_like(latent.bias))
        agreement = None if features is None else _measure(head, weight, bias, solution, projection, features)
    images = 0 if features is None else len(features)
    return WarmStart(exact=exact, rank=rank, lost=float(lost), agreement=agreement, images=images)


def _matrices(head: TextGuidedHead, classifier: Leaf) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return W, b and P in float64 on the CPU; raise ModelError if they do not fit together."""
    weight = classifier.weight.flatten(1)
    if weight.is_meta or head.projection.weight.is_meta:
        raise ModelError("A warm start needs the classifier's values, but the model is on the meta device.")
    if (head.num_classes, head.in_features) != tuple(weight.shape):
        raise ModelError(
            f"The classifier has {tuple(weight.shape)} classes and features, the head "
            f"{(head.num_classes, head.in_features)}; a warm start needs the same numbers."
        )
    if classifier.bias is not None and head.latent.bias is None:
        raise ModelError("The classifier has a bias and the head has none; build the head with bias=True.")
    tensors = [weight, head.projection.weight.flatten(1)] + ([] if classifier.bias is None else [classifier.bias])
    wide = [tensor.detach().cpu().double() for tensor in tensors]
    if not all(bool(tensor.isfinite().all()) for tensor in wide):
        raise ModelError(
            "The weights of the classifier or of the head contain NaN or Inf; a warm start needs finite ones."
        )
    return wide[0], wide[2] if classifier.bias is not None else None, wide[1]


def _measure(
    head: TextGuidedHead, weight: Tensor, bias: Tensor | None, solution: Tensor, projection: Tensor, features: Tensor
) -> float:
    """Set a cosine head's scale in place, and return how often the head decides as the classifier does."""
    scores = nn.functional.linear(features, weight, bias)
    inputs = weight.shape[1]
    latent = nn.functional.linear(features, solution[:, :inputs], None if bias is None else solution[:, inputs])
    if head.normalize:
        cosine = nn.functional.normalize(latent, dim=1) @ projection.T
        cosine = cosine - cosine.mean(dim=1, keepdim=True)
        fit = float((cosine * scores).sum() / cosine.square().sum().clamp_min(1e-300))
        if fit > 0 and math.isfinite(fit):
            head.logit_scale.fill_(math.log(fit))
    given = features.to(head.latent.weight)
    logits = head(given[:, :, None, None] if head.is_conv else given).flatten(1)
    return float((logits.argmax(dim=1).cpu() == scores.argmax(dim=1)).double().mean())


def warm_start_all(
    model: nn.Module, places: tuple[Classifier, ...], heads: list[TextGuidedHead], example_input: Tensor | None
) -> None:
    """Warm-start each head from the classifier that it replaces, in place, and log how well it reproduces it.

    The model still has its classifiers. Without ``example_input``, the agreement is not measured.
    """
    given: dict[str, Tensor] = {} if example_input is None else _features(model, places, example_input)
    for place, head in zip(places, heads, strict=True):
        kept = warm_start_(head, place.leaf, given.get(place.name))
        logger.info(
            "Warm start of %r: %s; decisions kept: %s.",
            place.name,
            "exact" if kept.exact else f"rank {kept.rank} of {head.num_classes}, {kept.lost:.2%} of the variation lost",
            "not measured (pass example_input=)"
            if kept.agreement is None
            else f"{kept.agreement:.2%} of {kept.images}",
        )


def _features(model: nn.Module, places: tuple[Classifier, ...], example_input: Tensor) -> dict[str, Tensor]:
    """Return the inputs of each classifier for a batch, ``(N, F)``; feature maps are averaged."""
    inputs: dict[str, Tensor] = {}

    def keep(name: str, args: tuple[Any, ...]) -> None:
        x = args[0].detach()
        inputs[name] = x.mean(dim=(2, 3)) if x.ndim == 4 and x.shape[1] == features[name] else x.flatten(0, -2)

    features = {place.name: place.in_features for place in places}
    handles = [
        place.leaf.register_forward_pre_hook(lambda _, args, name=place.name: keep(name, args)) for place in places
    ]
    try:
        with evaluating(model):
            run_model(model, example_input, during="the warm start of the head")
    finally:
        for handle in handles:
            handle.remove()
    return inputs
