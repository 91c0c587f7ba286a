"""Swap a model's classifier for a text-guided head, and back."""

import warnings
from dataclasses import dataclass
from typing import TypeVar, overload

import torch
from torch import nn

from resilient_heads.errors import ModelError
from resilient_heads.heads.locate import Classifier, Leaf, find_classifier, find_heads
from resilient_heads.heads.text_guided import FusedCosineHead, Initialisation, TextGuidedHead, check_initialisation
from resilient_heads.text.bundled import bundled_names, load_bundled
from resilient_heads.text.descriptions import ClassDescriptions
from resilient_heads.text.embeddings import ClassEmbeddings
from resilient_heads.text.encoders.named import encoder_of
from resilient_heads.text.pooling import embed_classes
from resilient_heads.text.prebuilt import load_embeddings
from resilient_heads.text.questions import TEMPLATE

M = TypeVar("M", bound=nn.Module)

_KEEPSAKE = "_replaced"


@dataclass(frozen=True)
class _Replaced:
    """What a head stands in for. A plain attribute of the head: no module, so no part of the state dict."""

    layer: Leaf
    num_classes: int | None


def wrap_model(
    model: M,
    *,
    embeddings: ClassEmbeddings | str | None = None,
    head: TextGuidedHead | None = None,
    classifier: str | None = None,
    normalize: bool = True,
    new_classes: bool = False,
    init: Initialisation = "descriptions",
    offline: bool = False,
) -> M:
    """Replace a model's classifier by a text-guided head, in place.

    Everything else keeps its bits. The head takes over dtype, device, mode, ``requires_grad`` and, for its latent
    layer, whether there is a bias. Wrap before the optimizer, an EMA copy, DDP or compile see the parameters.

    Args:
        model: Any torchvision classifier, or a module whose last parameters belong to a Linear or 1x1 Conv2d.
        embeddings: Class embeddings, or the name of prebuilt ones (``"imagenet1k"``, ``"cifar100"``...). With neither
            ``embeddings`` nor ``head``, a model of 1,000 classes gets ``"imagenet1k"``.
        head: A head built before, instead of ``embeddings``; it is used itself, not copied.
        classifier: Dotted path of the layer to replace, where it is not the last.
        normalize: Cosine head (True) or two linear layers (False); ignored with ``head``.
        init: Where the head's rows start: at the embeddings as they are (``"descriptions"``), at those of
            ``"a photo of a {}"`` from the same encoder (``"template"``), or at ``"random"`` in the same sizes; not with
            ``head``, which has started already.
        new_classes: Allow embeddings whose number of classes is not the model's, as when fine-tuning on other classes.
        offline: Never touch the network for embeddings that are named, or for the encoder of ``init="template"``.

    Returns:
        The same model.

    Raises:
        ModelError: No classifier, a model that is already wrapped or compiled, a wrong number of classes or features.
        EmbeddingError: No prebuilt embeddings of that name, or no way back to the encoder that made them.
    """
    _require_module(model)
    if is_wrapped(model):
        raise ModelError(
            f"{type(model).__name__} already has a text-guided head at {next(iter(find_heads(model)))!r}; "
            "call unwrap_model(model) first."
        )
    if any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in model.modules()):
        raise ModelError("The model is compiled, or holds a compiled module; wrap it first, then compile it.")
    if embeddings is not None and head is not None:
        raise ModelError("Pass either embeddings= or head=, not both.")
    if head is not None and init != "descriptions":
        raise ModelError(f"head= has started already, so init={init!r} cannot apply; build the head with it.")
    place = find_classifier(model, classifier)
    if head is None:
        head = _build_head(place, embeddings, normalize, init, offline)
    _check_head(head, place)
    if head.num_classes != place.num_classes and not new_classes:
        raise ModelError(
            f"{type(model).__name__}'s classifier {place.name!r} has {place.num_classes} classes, the embeddings have "
            f"{head.num_classes}. Build the model with num_classes={head.num_classes}, or pass new_classes=True "
            "to give it these classes instead."
        )
    _fit_head(head, place)
    _warn_about_relu(place)
    own_count = vars(model).get("num_classes")  # a property follows by itself, or cannot be set
    head.__dict__[_KEEPSAKE] = _Replaced(place.leaf, own_count if isinstance(own_count, int) else None)
    head.train(place.leaf.training)
    head.requires_grad_(place.leaf.weight.requires_grad)
    _swap(model, place.leaf, head)
    if isinstance(own_count, int):
        model.num_classes = head.num_classes  # type: ignore[assignment]
    return model


def unwrap_model(model: M) -> M:
    """Put back the classifier that :func:`wrap_model` replaced, bit for bit, in place.

    It follows the model to the device and dtype that the head has now.

    Returns:
        The same model.

    Raises:
        ModelError: The model is not wrapped, or its head was not put there by :func:`wrap_model`.
    """
    _require_module(model)
    heads = find_heads(model)
    if not heads:
        raise ModelError(
            f"{type(model).__name__} is not wrapped: it has no text-guided head (a fused linear head is a plain "
            "nn.Linear, which cannot be undone)."
        )
    for name, head in heads.items():
        if not name:
            raise ModelError("This is the head itself; pass the model that holds it.")
        if _KEEPSAKE not in head.__dict__:
            raise ModelError(f"The head at {name!r} was not put there by wrap_model, so nothing can be restored.")
    for name, head in heads.items():
        replaced: _Replaced = head.__dict__[_KEEPSAKE]
        reference = next(head.parameters())
        if replaced.layer.weight.is_meta and not reference.is_meta:
            raise ModelError(
                f"The layer that the head at {name!r} replaced was on the meta device and has no values to restore."
            )
        _swap(model, head, replaced.layer.to(device=reference.device, dtype=reference.dtype).train(head.training))
        if replaced.num_classes is not None:
            model.num_classes = replaced.num_classes  # type: ignore[assignment]
        del head.__dict__[_KEEPSAKE]
    return model


def is_wrapped(model: nn.Module) -> bool:
    """Whether a model holds a text-guided head, fused cosine heads included."""
    _require_module(model)
    return bool(find_heads(model))


@overload
def fuse(model: TextGuidedHead) -> nn.Linear | nn.Conv2d | FusedCosineHead: ...
@overload
def fuse(model: M) -> M: ...
def fuse(model: nn.Module) -> nn.Module:
    """Make one layer of each text-guided head's latent and projection.

    A linear head becomes a plain ``nn.Linear`` (``nn.Conv2d``), which loads into the stock model. A cosine head becomes
    a :class:`FusedCosineHead`: one matrix product that gives the scores and the vector whose norm divides them. Logits
    stay equal within rounding; the products are taken in float64.

    Args:
        model: A wrapped model, changed in place, or a head.

    Returns:
        The same model; for a head, the layer that stands for it.

    Raises:
        ModelError: There is no text-guided head to fuse.
    """
    if isinstance(model, TextGuidedHead):
        return model.fused()
    _require_module(model)
    heads = [head for head in find_heads(model).values() if isinstance(head, TextGuidedHead)]
    if not heads:
        raise ModelError(f"{type(model).__name__} has no unfused text-guided head; call wrap_model(model) first.")
    for head in heads:
        fused = head.fused()
        if isinstance(fused, FusedCosineHead) and _KEEPSAKE in head.__dict__:
            fused.__dict__[_KEEPSAKE] = head.__dict__[_KEEPSAKE]
        _swap(model, head, fused)
    return model


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


def _build_head(
    place: Classifier, embeddings: ClassEmbeddings | str | None, normalize: bool, init: Initialisation, offline: bool
) -> TextGuidedHead:
    """Return a head that fits the place."""
    leaf = place.leaf
    check_initialisation(init)
    text = _embeddings_for(place, embeddings, offline)
    if init == "template":
        plain = ClassDescriptions.match(text.class_names, None, templates=(TEMPLATE,))
        text = embed_classes(plain, encoder_of(text.provenance, offline=offline))
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


def _check_head(head: TextGuidedHead, place: Classifier) -> None:
    """Raise ModelError unless the head can stand at the place."""
    if not isinstance(head, TextGuidedHead):
        raise ModelError(f"head must be a TextGuidedHead, found {type(head).__name__}.")
    if _KEEPSAKE in head.__dict__:
        raise ModelError("The head already serves a model; build another one, or unwrap that model first.")
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
def _fit_head(head: TextGuidedHead, place: Classifier) -> None:
    """Bring a head to the place's device and dtype, and give a lazy one its features."""
    weight = place.leaf.weight
    if head.in_features is None:
        shape = (1, place.in_features, 1, 1) if head.is_conv else (1, place.in_features)
        head.latent(head.projection.weight.new_zeros(shape))
    head.to(device=weight.device, dtype=weight.dtype)


def _swap(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in another's stead, under every name that the model has for it."""
    places = [name for name, module in model.named_modules(remove_duplicate=False) if module is old]
    for name in places:
        parent_name, _, key = name.rpartition(".")
        setattr(model.get_submodule(parent_name), key, new)


def _require_module(model: nn.Module) -> None:
    """Raise ModelError for what is no module."""
    if not isinstance(model, nn.Module):
        raise ModelError(f"Expected a torch.nn.Module, found {type(model).__name__}.")


def _warn_about_relu(place: Classifier) -> None:
    """Warn when a ReLU follows the classifier: negative logits, half of a cosine head's range, are lost to it."""
    following = getattr(place.parent, str(int(place.key) + 1), None) if place.key.isdigit() else None
    if isinstance(following, nn.ReLU):
        warnings.warn(
            f"A ReLU follows the classifier {place.name!r}, so this model's logits are never negative; "
            "the text-guided head keeps it.",
            UserWarning,
            stacklevel=3,
        )
