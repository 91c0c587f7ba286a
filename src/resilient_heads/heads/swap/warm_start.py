"""Start a head where a trained classifier stands, so that it decides as that did.

With projection ``P (C, E)`` and classifier ``y = W x + b``, the latent layer that comes closest for every input is
``P^+ W`` and ``P^+ b``: for each ``x`` it is the least-squares solution of ``P z = W x + b``, whatever the features'
distribution. Where the rows of ``P`` are independent, which needs C <= E, ``P z`` are the classifier's scores.
Otherwise all scores of an image may move together without a change of decision, so both sides are centred over the
classes first, and what lies outside the span of ``P`` is lost. The cosine head divides the scores of an image by one
positive number, ``||z||``: its decisions are those of the scores, its confidences are not.
"""

import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resilient_heads.errors import ModelError
from resilient_heads.evaluation import evaluating
from resilient_heads.heads.find.candidates import Classifier, Leaf
from resilient_heads.heads.text_guided import TextGuidedHead

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """What a warm start kept.

    Attributes:
        exact: The rows of the projection are independent, so the decisions are the classifier's up to rounding.
        rank: Rank of the projection.
        lost: Share of the classifier's variation between classes that the head cannot express, 0 to 1:
            ``||W' - P L||^2 / ||W'||^2`` with ``W' = [W b]``, both centred over the classes.
        agreement: Share of the given features on which both decide alike, or None where none were given.
        samples: How many features that was measured on.
    """

    exact: bool
    rank: int
    lost: float
    agreement: float | None
    samples: int


@torch.no_grad()
def warm_start(head: TextGuidedHead, classifier: Leaf, features: Tensor | None = None) -> WarmStart:
    """Solve for a head's latent layer so that it decides as a trained classifier does; the projection stays.

    Args:
        head: The head, with the classifier's features and classes; changed in place.
        classifier: The trained Linear or 1x1 Conv2d; read only.
        features: What the classifier was given, ``(N, F)``. With them the agreement is measured, and a cosine head's
            scale is set so that its logits come closest to the classifier's scores (least squares); without, the scale
            stays where it is.

    Returns:
        What was kept.

    Raises:
        ModelError: Sizes differ, or values are not finite, or the head has no bias where the classifier has one.
    """
    weight, bias, projection = _matrices(head, classifier)
    target = weight if bias is None else torch.cat([weight, bias[:, None]], dim=1)
    rank = int(torch.linalg.matrix_rank(projection))
    exact = rank == projection.shape[0]
    centred = target - target.mean(dim=0)
    if exact:
        solution = torch.linalg.pinv(projection) @ target
    else:
        solution = torch.linalg.pinv(projection - projection.mean(dim=0)) @ centred
    found = projection @ solution
    total = centred.square().sum()
    lost = (centred - (found - found.mean(dim=0))).square().sum() / total if total > 0 else total
    latent = head.latent
    inputs = weight.shape[1]
    latent.weight.copy_(solution[:, :inputs].reshape(latent.weight.shape))
    if latent.bias is not None:
        latent.bias.copy_(solution[:, inputs] if bias is not None else torch.zeros_like(latent.bias))
    agreement = None
    if features is not None:
        agreement = _measure(head, weight, bias, solution, projection, _checked(features, inputs))
    return WarmStart(
        exact=exact,
        rank=rank,
        lost=float(lost),
        agreement=agreement,
        samples=0 if features is None else len(features),
    )


def _matrices(head: TextGuidedHead, classifier: Leaf) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return W, b and P in float64 on the CPU, or say why they do not go together."""
    weight = classifier.weight.flatten(1)
    if weight.is_meta or head.projection.weight.is_meta:
        raise ModelError("A warm start needs the classifier's values; the model is on the meta device.")
    if (head.num_classes, head.in_features) != tuple(weight.shape):
        raise ModelError(
            f"The classifier is {tuple(weight.shape)} (classes, features), the head "
            f"{(head.num_classes, head.in_features)}; a warm start needs the same."
        )
    if classifier.bias is not None and head.latent.bias is None:
        raise ModelError("The classifier has a bias and the head has none; build it with bias=True.")
    tensors = [weight, head.projection.weight.flatten(1)] + ([] if classifier.bias is None else [classifier.bias])
    wide = [tensor.detach().cpu().double() for tensor in tensors]
    if not all(bool(tensor.isfinite().all()) for tensor in wide):
        raise ModelError("The classifier's or the head's weights are not all finite; nothing to start from.")
    return wide[0], wide[2] if classifier.bias is not None else None, wide[1]


def _checked(features: Tensor, inputs: int) -> Tensor:
    """Return features in float64, or say what was expected."""
    if features.ndim != 2 or features.shape[1] != inputs or not len(features):
        raise ModelError(f"features must be (N, {inputs}) with N > 0, found {tuple(features.shape)}.")
    return features.detach().cpu().double()


def _measure(
    head: TextGuidedHead, weight: Tensor, bias: Tensor | None, solution: Tensor, projection: Tensor, features: Tensor
) -> float:
    """Set a cosine head's scale, and return how often the head as it stands decides like the classifier."""
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
    model: nn.Module, places: tuple[Classifier, ...], heads: list[TextGuidedHead], sample: Tensor | None
) -> None:
    """Solve each head's latent layer from the classifier at its place, and log what was kept.

    Args:
        model: The model, which still holds its classifiers.
        places: The classifiers.
        heads: As many heads.
        sample: A batch as the model takes it, on which the model is then run; None measures nothing.
    """
    given: dict[str, Tensor] = {} if sample is None else _features(model, places, sample)
    for place, head in zip(places, heads, strict=True):
        kept = warm_start(head, place.leaf, given.get(place.name))
        logger.info(
            "Warm start of %r: %s; decisions kept: %s.",
            place.name,
            "exact" if kept.exact else f"rank {kept.rank} of {head.num_classes}, {kept.lost:.2%} of the variation lost",
            "not measured (pass sample=)" if kept.agreement is None else f"{kept.agreement:.2%} of {kept.samples}",
        )


def _features(model: nn.Module, places: tuple[Classifier, ...], sample: Tensor) -> dict[str, Tensor]:
    """Return what each classifier is given for a batch, ``(N, F)``; of a feature map, its average."""
    found: dict[str, Tensor] = {}

    def keep(name: str, args: tuple[Any, ...]) -> None:
        x = args[0].detach()
        found[name] = x.mean(dim=(2, 3)) if x.ndim == 4 and x.shape[1] == features[name] else x.flatten(0, -2)

    features = {place.name: place.in_features for place in places}
    handles = [
        place.leaf.register_forward_pre_hook(lambda _, args, name=place.name: keep(name, args)) for place in places
    ]
    try:
        with evaluating(model):
            model(sample)
    finally:
        for handle in handles:
            handle.remove()
    return found
