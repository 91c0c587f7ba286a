"""The head that goes to a place: from which text it starts, and whether it fits."""

from typing import Literal

import torch
from torch import nn

from resilient_heads.errors import ModelError
from resilient_heads.heads.find.candidates import Classifier
from resilient_heads.heads.text_guided import Initialisation, TextGuidedHead, check_initialisation
from resilient_heads.text.descriptions.class_descriptions import ClassDescriptions
from resilient_heads.text.descriptions.questions import TEMPLATE
from resilient_heads.text.embeddings import ClassEmbeddings
from resilient_heads.text.encoders.named import encoder_of
from resilient_heads.text.encoders.pooling import embed_classes
from resilient_heads.text.prebuilt.bundled import bundled_names, load_bundled
from resilient_heads.text.prebuilt.load import load_embeddings

Start = Initialisation | Literal["from_classifier"]


def text_for(
    place: Classifier, embeddings: ClassEmbeddings | str | None, init: Start, offline: bool
) -> ClassEmbeddings:
    """Return the embeddings to start from.

    Args:
        place: The classifier, whose number of classes decides where nothing was named.
        embeddings: Embeddings, the name of prebuilt ones, or None.
        init: As ``wrap_model`` takes it; a template is encoded here.
        offline: Never touch the network.

    Raises:
        ModelError: Nothing says which classes the model has, or ``embeddings`` is neither.
        EmbeddingError: No prebuilt embeddings of that name.
    """
    if init != "from_classifier":
        check_initialisation(init)
    text = _embeddings_for(place, embeddings, offline)
    if init == "template":
        plain = ClassDescriptions.match(text.class_names, None, templates=(TEMPLATE,))
        text = embed_classes(plain, encoder_of(text.provenance, offline=offline))
    return text


def _embeddings_for(place: Classifier, embeddings: ClassEmbeddings | str | None, offline: bool) -> ClassEmbeddings:
    """Resolve what ``wrap_model`` was given to class embeddings."""
    if isinstance(embeddings, ClassEmbeddings):
        return embeddings
    if isinstance(embeddings, str):
        return load_embeddings(embeddings, offline=offline)
    if embeddings is not None:
        raise ModelError(
            f"embeddings must be ClassEmbeddings or a name, found {type(embeddings).__name__}; "
            "a tensor needs its class names: ClassEmbeddings(vectors, class_names)."
        )
    if place.num_classes == 1000:
        return load_embeddings("imagenet1k", offline=offline)
    fitting = [name for name in bundled_names() if load_bundled(name).num_classes == place.num_classes]
    offer = f"Prebuilt ones of that size: {', '.join(fitting)}" if fitting else "No prebuilt ones have that size"
    raise ModelError(
        f"The model has {place.num_classes} classes and nothing says which. {offer}; pass embeddings= a name or "
        "ClassEmbeddings, or head= a TextGuidedHead."
    )


def build_head(place: Classifier, text: ClassEmbeddings, normalize: bool, init: Start) -> TextGuidedHead:
    """Return a head that fits the place."""
    leaf = place.leaf
    head = TextGuidedHead(
        place.in_features,
        (text.num_classes, text.embed_dim) if init == "random" else text,
        normalize=normalize,
        bias=leaf.bias is not None,
        conv=isinstance(leaf, nn.Conv2d),
        device=leaf.weight.device,
        dtype=leaf.weight.dtype,
    )
    head.class_names = text.class_names
    return head


def check_fits(head: TextGuidedHead, place: Classifier) -> None:
    """Raise ModelError unless the head is of the place's kind and takes its features."""
    conv = isinstance(place.leaf, nn.Conv2d)
    if head.is_conv != conv:
        raise ModelError(
            f"The classifier {place.name!r} is a {type(place.leaf).__name__}; build the head with conv={conv}."
        )
    if head.in_features not in (None, place.in_features):
        raise ModelError(
            f"The classifier {place.name!r} takes {place.in_features} features, the head {head.in_features}; "
            f"build it with in_features={place.in_features}, or None to let wrap_model set it."
        )


@torch.no_grad()
def fit_head(head: TextGuidedHead, place: Classifier) -> None:
    """Bring a head to the place's device and dtype, and give a lazy one its features."""
    weight = place.leaf.weight
    if head.in_features is None:
        shape = (1, place.in_features, 1, 1) if head.is_conv else (1, place.in_features)
        head.latent(head.projection.weight.new_zeros(shape))
    head.to(device=weight.device, dtype=weight.dtype)
