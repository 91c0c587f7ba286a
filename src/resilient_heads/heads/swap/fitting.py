"""Build the head for a classifier: its class embeddings, its sizes, its device and dtype."""

import os
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import nn

from resilient_heads.checks import one_of
from resilient_heads.errors import ArgumentError, ModelError
from resilient_heads.heads.find.candidates import Classifier
from resilient_heads.heads.text_guided import TextGuidedHead
from resilient_heads.text.descriptions.class_descriptions import ClassDescriptions
from resilient_heads.text.descriptions.questions import TEMPLATE
from resilient_heads.text.embeddings import ClassEmbeddings
from resilient_heads.text.encoders.named import encoder_of
from resilient_heads.text.encoders.pooling import embed_classes
from resilient_heads.text.hub.settings import HubSettings
from resilient_heads.text.prebuilt.bundled import bundled_names, load_bundled
from resilient_heads.text.prebuilt.load import load_embeddings

Start = Literal["descriptions", "template", "random", "from_classifier"]


def text_for(
    place: Classifier, embeddings: ClassEmbeddings | str | None, init: Start, offline: bool
) -> ClassEmbeddings:
    """Return the class embeddings that a head starts from, for the arguments of ``wrap_model``."""
    one_of("init", init, get_args(Start))
    text = _embeddings_for(place, embeddings, offline)
    if init == "template":
        sentences = ClassDescriptions.match(text.class_names, None, templates=(TEMPLATE,))
        text = embed_classes(sentences, encoder_of(text.provenance, hub=HubSettings(offline=offline)))
    return text


def _embeddings_for(place: Classifier, embeddings: ClassEmbeddings | str | None, offline: bool) -> ClassEmbeddings:
    """Return ``embeddings=`` of ``wrap_model`` as class embeddings."""
    if isinstance(embeddings, ClassEmbeddings):
        return embeddings
    if isinstance(embeddings, str):
        if embeddings not in bundled_names() and (embeddings.endswith(".safetensors") or os.path.exists(embeddings)):
            raise ArgumentError(f"embeddings={embeddings!r} is a file; pass rh.ClassEmbeddings.load({embeddings!r}).")
        return load_embeddings(embeddings, offline=offline)
    if embeddings is not None:
        raise ArgumentError(
            f"embeddings must be ClassEmbeddings or a name, found {type(embeddings).__name__}; {_advice(embeddings)}."
        )
    if place.num_classes == 1000:
        return load_embeddings("imagenet1k", offline=offline)
    fitting = [name for name in bundled_names() if load_bundled(name).num_classes == place.num_classes]
    offer = f"Prebuilt embeddings of that size: {', '.join(fitting)}" if fitting else "No prebuilt ones have that size"
    raise ModelError(
        f"The model has {place.num_classes} classes, and their names are unknown. {offer}; pass a name or "
        "ClassEmbeddings as embeddings=, or a TextGuidedHead as head=."
    )


def _advice(embeddings: object) -> str:
    """Return how to make class embeddings of a value, as the end of a sentence."""
    if isinstance(embeddings, Mapping):
        if all(isinstance(value, torch.Tensor) for value in embeddings.values()):
            return "for vectors by class name: rh.ClassEmbeddings(torch.stack(list(d.values())), tuple(d))"
        return (
            "for sentences by class name: rh.embed_classes(rh.ClassDescriptions.match(names, d), encoder), where the "
            "encoder may be rh.text.PrecomputedEncoder"
        )
    if isinstance(embeddings, os.PathLike):
        return "for a file: rh.ClassEmbeddings.load(path)"
    return "a tensor needs its class names: ClassEmbeddings(vectors, class_names)"


def build_head(place: Classifier, text: ClassEmbeddings, normalize: bool, init: Start) -> TextGuidedHead:
    """Return a new head for a classifier."""
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


def check_fits(head: TextGuidedHead, place: Classifier, new_classes: bool) -> None:
    """Raise ModelError unless the head has the classifier's kind, features and (without ``new_classes``) classes."""
    conv = isinstance(place.leaf, nn.Conv2d)
    if head.is_conv != conv:
        raise ModelError(
            f"The classifier {place.name!r} is a {type(place.leaf).__name__}; build the head with conv={conv}."
        )
    if head.in_features not in (None, place.in_features):
        raise ModelError(
            f"The classifier {place.name!r} has {place.in_features} input features, the head {head.in_features}; "
            f"build the head with in_features={place.in_features}, or with None to let wrap_model set it."
        )
    if head.num_classes != place.num_classes and not new_classes:
        raise ModelError(
            f"The classifier {place.name!r} has {place.num_classes} classes, the embeddings have {head.num_classes}. "
            f"Build the model with num_classes={head.num_classes}, or pass new_classes=True to give it these classes "
            "instead."
        )


@torch.no_grad()
def fit_head(head: TextGuidedHead, place: Classifier) -> None:
    """Move a head to the classifier's device and dtype, and set ``in_features`` if they are open, in place."""
    weight = place.leaf.weight
    if head.in_features is None:
        shape = (1, place.in_features, 1, 1) if head.is_conv else (1, place.in_features)
        head.latent(head.projection.weight.new_zeros(shape))
    head.to(device=weight.device, dtype=weight.dtype)
