"""Swap a model's classifier for a text-guided head, and back."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, overload

from torch import Tensor, nn

from resilient_heads.errors import ModelError
from resilient_heads.heads.find.candidates import Classifier, Leaf
from resilient_heads.heads.find.locate import find_classifiers, find_heads
from resilient_heads.heads.find.trace import shapes_after, trace
from resilient_heads.heads.fused_cosine import FusedCosineHead
from resilient_heads.heads.swap.checkpoint import guard_loading
from resilient_heads.heads.swap.class_metadata import ClassMetadata, adapt, allow_reset, restore, survey
from resilient_heads.heads.swap.fitting import Start, build_head, check_fits, fit_head, text_for
from resilient_heads.heads.swap.replace import swap
from resilient_heads.heads.swap.warm_start import warm_start_all
from resilient_heads.heads.text_guided import TextGuidedHead
from resilient_heads.heads.wrappers import refuse_held
from resilient_heads.text.embeddings import ClassEmbeddings

M = TypeVar("M", bound=nn.Module)

_KEEPSAKE = "_replaced"


@dataclass(frozen=True)
class _Replaced:
    """What a head stands in for. A plain attribute of the head: no module, so no part of the state dict."""

    layer: Leaf
    around: ClassMetadata


def wrap_model(
    model: M,
    *,
    embeddings: ClassEmbeddings | str | None = None,
    head: TextGuidedHead | None = None,
    classifier: str | Sequence[str] | None = None,
    normalize: bool = True,
    new_classes: bool = False,
    init: Start = "descriptions",
    sample: Tensor | None = None,
    offline: bool = False,
) -> M:
    """Replace a model's classifier by a text-guided head, in place; of several classifiers, every one.

    Everything else keeps its bits. Hooks of the classifier stay with it, and come back with it when the model is
    unwrapped. The head takes over dtype, device, mode, ``requires_grad`` and, for its latent
    layer, whether there is a bias. ``num_classes``, ``num_labels`` and a transformers configuration's labels follow.
    Wrap before the optimizer, an EMA copy, DDP or compile see the parameters. The model is not run (but see
    ``sample``): which layers give its output is seen on a twin without weights, see
    :func:`~resilient_heads.heads.find.locate.find_classifiers`.

    Args:
        model: A classifier of torchvision, timm or transformers, or any module that ends in a Linear or 1x1 Conv2d.
        embeddings: Class embeddings, or the name of prebuilt ones (``"imagenet1k"``, ``"cifar100"``...). With neither
            ``embeddings`` nor ``head``, a model of 1,000 classes gets ``"imagenet1k"``.
        head: A head built before, instead of ``embeddings``; it is used itself, not copied.
        classifier: Dotted path of the layer to replace, or of several, where they are not found by themselves.
        normalize: Cosine head (True) or two linear layers (False); ignored with ``head``.
        init: Where the head starts: its rows at the embeddings as they are (``"descriptions"``), at those of
            ``"a photo of a {}"`` from the same encoder (``"template"``), or at ``"random"`` in the same sizes; or rows
            at the embeddings and the latent layer solved so that the classifier's decisions stay
            (``"from_classifier"``, see :func:`~resilient_heads.heads.swap.warm_start.warm_start`; what was kept is
            logged). With ``head``, whose rows have started already, only the last.
        new_classes: Allow embeddings whose number of classes is not the model's, as when fine-tuning on other classes.
        sample: A batch as the model takes it, where its shape cannot be guessed. With ``init="from_classifier"`` the
            model also runs on it, to set a cosine head's scale and to log how many decisions were kept.
        offline: Never touch the network for embeddings that are named, or for the encoder of ``init="template"``.

    Returns:
        The same model.

    Raises:
        ModelError: No classifier, or several of which one would stay; a model that is already wrapped or compiled; a
            wrong number of classes or features; an output whose shape would not follow.
        EmbeddingError: No prebuilt embeddings of that name.
    """
    _require_module(model)
    _require_plain(model)
    if embeddings is not None and head is not None:
        raise ModelError("Pass either embeddings= or head=, not both.")
    if head is not None and init not in ("descriptions", "from_classifier"):
        raise ModelError(f"head= has started already, so init={init!r} cannot apply; build the head with it.")
    if init == "from_classifier" and new_classes:
        raise ModelError('init="from_classifier" keeps the old classes\' decisions; it cannot go with new_classes.')
    places = find_classifiers(model, classifier, sample=sample)
    if head is not None and len(places) > 1:
        raise ModelError(
            f"{type(model).__name__} has {len(places)} classifiers ({', '.join(place.name for place in places)}), and "
            "one head cannot stand for all; pass embeddings= instead."
        )
    if head is not None:
        heads = [head]
    else:
        text = text_for(places[0], embeddings, init, offline)
        heads = [build_head(place, text, normalize, init) for place in places]
    for place, each in zip(places, heads, strict=True):
        _require_free(each)
        check_fits(each, place)
        if each.num_classes != place.num_classes and not new_classes:
            raise ModelError(
                f"{type(model).__name__}'s classifier {place.name!r} has {place.num_classes} classes, the embeddings "
                f"have {each.num_classes}. Build the model with num_classes={each.num_classes}, or pass "
                "new_classes=True to give it these classes instead."
            )
    for place, each in zip(places, heads, strict=True):
        fit_head(each, place)
    if init == "from_classifier":
        warm_start_all(model, places, heads, sample)
    _warn_about_relu(places[0])
    expected = shapes_after(model, places[0].num_classes, heads[0].num_classes, sample)
    around = [survey(model, place.name, place.num_classes) for place in places]
    for place, each, before in zip(places, heads, around, strict=True):
        each.__dict__[_KEEPSAKE] = _Replaced(place.leaf, before)
        each.train(place.leaf.training)
        each.requires_grad_(place.leaf.weight.requires_grad)
        swap(model, place.leaf, each)
        adapt(model, place.name, before, each.num_classes, each.class_names)
    _check_shapes(model, expected, sample)
    guard_loading(model)
    return model


def unwrap_model(model: M) -> M:
    """Put back the classifiers that :func:`wrap_model` replaced, bit for bit, in place.

    They follow the model to the device and dtype that the head has now.

    Returns:
        The same model.

    Raises:
        ModelError: The model is not wrapped, or its head was not put there by :func:`wrap_model`.
    """
    _require_module(model)
    refuse_held(model, "unwrap")
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
        replaced: _Replaced = head.__dict__[_KEEPSAKE]
        if next(head.parameters(), None) is None:
            raise ModelError(f"The head at {name!r} is quantised; unwrap the model that it was made from.")
        if replaced.layer.weight.is_meta and not next(head.parameters()).is_meta:
            raise ModelError(
                f"The layer that the head at {name!r} replaced was on the meta device and has no values to restore."
            )
    for name, head in heads.items():
        replaced = head.__dict__.pop(_KEEPSAKE)
        reference = next(head.parameters())
        swap(model, head, replaced.layer.to(device=reference.device, dtype=reference.dtype).train(head.training))
        restore(model, name, replaced.around)
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
        ModelError: There is no text-guided head to fuse, or its weights are quantised or sharded.
    """
    if isinstance(model, TextGuidedHead):
        return model.fused()
    _require_module(model)
    refuse_held(model, "fuse")
    heads = {name: head for name, head in find_heads(model).items() if isinstance(head, TextGuidedHead)}
    if not heads:
        raise ModelError(f"{type(model).__name__} has no unfused text-guided head; call wrap_model(model) first.")
    made = {name: head.fused() for name, head in heads.items()}  # all of them, or an error before the first swap
    for name, head in heads.items():
        fused = made[name]
        if not isinstance(fused, FusedCosineHead):
            allow_reset(model, name)  # the model is a stock one again
        elif _KEEPSAKE in head.__dict__:
            fused.__dict__[_KEEPSAKE] = head.__dict__[_KEEPSAKE]
        swap(model, head, fused)
    return model


def _require_plain(model: nn.Module) -> None:
    """Raise ModelError for a model that is wrapped already, or that something holds which a swap would escape."""
    if is_wrapped(model):
        raise ModelError(
            f"{type(model).__name__} already has a text-guided head at {next(iter(find_heads(model)))!r}; "
            "call unwrap_model(model) first."
        )
    refuse_held(model, "wrap")


def _check_shapes(model: nn.Module, expected: tuple[tuple[int, ...], ...] | None, sample: Tensor | None) -> None:
    """Undo the wrapping and raise ModelError where the output's shape did not follow the classes."""
    if expected is None:
        return
    seen = trace(model, sample)
    if seen is None or seen.shapes != expected:
        found = "no output" if seen is None else str(seen.shapes)
        unwrap_model(model)
        raise ModelError(
            f"With the new classes {type(model).__name__} gives {found} instead of {expected}: something after the "
            "classifier depends on their number. Build the model with that number, then wrap it."
        )


def _require_free(head: TextGuidedHead) -> None:
    """Raise ModelError unless this is a head, and one that serves no model yet."""
    if not isinstance(head, TextGuidedHead):
        raise ModelError(f"head must be a TextGuidedHead, found {type(head).__name__}.")
    if _KEEPSAKE in head.__dict__:
        raise ModelError("The head already serves a model; build another one, or unwrap that model first.")


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
