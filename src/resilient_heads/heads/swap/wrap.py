"""Replace a model's classifier by a text-guided head, put it back, fuse the head."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, overload

from torch import Tensor, nn

from resilient_heads.checks import instance_of
from resilient_heads.errors import ArgumentError, ModelError
from resilient_heads.heads.find.candidates import Classifier, Leaf
from resilient_heads.heads.find.locate import find_classifiers, find_heads
from resilient_heads.heads.find.trace import shapes_after, trace
from resilient_heads.heads.fused_cosine import FusedCosineHead
from resilient_heads.heads.swap.checkpoint import guard_loading
from resilient_heads.heads.swap.class_metadata import ClassMetadata, allow_reset, read_metadata, restore, update
from resilient_heads.heads.swap.fitting import Start, build_head, check_fits, fit_head, text_for
from resilient_heads.heads.swap.undo import all_or_nothing
from resilient_heads.heads.swap.warm_start import warm_start_all
from resilient_heads.heads.text_guided import TextGuidedHead
from resilient_heads.heads.wrappers import refuse_wrappers
from resilient_heads.text.embeddings import ClassEmbeddings
from resilient_heads.wrappers import require_module

M = TypeVar("M", bound=nn.Module)

_REPLACED = "_replaced"


@dataclass(frozen=True)
class _Replaced:
    """The layer that a head replaced. It is a plain attribute of the head, so it is not in the state dict."""

    layer: Leaf
    metadata: ClassMetadata


def wrap_model(
    model: M,
    *,
    embeddings: ClassEmbeddings | str | None = None,
    head: TextGuidedHead | None = None,
    classifier: str | Sequence[str] | None = None,
    normalize: bool = True,
    new_classes: bool = False,
    init: Start = "descriptions",
    example_input: Tensor | None = None,
    offline: bool = False,
) -> M:
    """Replace every classifier of a model by a text-guided head, in place.

    All other parameters keep their bits. The head takes over the classifier's device, dtype, mode and
    ``requires_grad``; its latent layer has a bias if the classifier has one. The classifier's hooks stay with the
    classifier and return with it (:func:`unwrap_model`). The function also updates ``num_classes``, ``num_labels`` and
    the labels of a transformers configuration.

    Wrap a model before you pass it to an optimizer, an EMA copy, DDP or ``torch.compile``.

    Args:
        model: A classifier of torchvision, timm or transformers, or a module that ends in a Linear or 1x1 Conv2d. The
            model does not run, except on ``example_input`` with ``init="from_classifier"``.
        embeddings: Class embeddings, or the name of prebuilt ones (``"imagenet1k"``, ``"cifar100"``). Without
            ``embeddings`` and ``head``, a model of 1,000 classes gets ``"imagenet1k"``.
        head: A head to use instead of ``embeddings``; it is not copied.
        classifier: Dotted path of the layer to replace, or several. By default :func:`wrap_model` finds them.
        normalize: Cosine head (True) or two linear layers (False); ignored with ``head``.
        new_classes: Permit embeddings with another number of classes than the model's, to fine-tune on other classes.
        init: Where the head starts. ``"descriptions"``: rows at the embeddings. ``"template"``: rows at the embeddings
            of ``"a photo of a {}"`` from the same encoder. ``"random"``: random rows. ``"from_classifier"``: rows at
            the embeddings, and a latent layer that keeps the classifier's decisions; a log line says how many it keeps.
            With ``head``, only ``"from_classifier"`` is possible.
        example_input: A batch that the model accepts, if its shape cannot be guessed. With ``init="from_classifier"``
            the model runs on it, to set a cosine head's scale and to measure the decisions kept.
        offline: Never use the network, neither for named embeddings nor for the encoder of ``init="template"``.

    Returns:
        The same model.

    Raises:
        ArgumentError: Arguments that contradict each other, or have a wrong type.
        ModelError: No classifier was found, or one of several would stay; the model is wrapped or compiled already; a
            number of classes or features is wrong; the output's shape would not follow the new number of classes.
        EmbeddingError: No prebuilt embeddings have that name.

    >>> import torch, resilient_heads as rh
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10))
    >>> rh.wrap_model(net, embeddings="cifar10")[2].class_names[:3]
    ('airplane', 'automobile', 'bird')
    """
    if is_wrapped(model):
        raise ModelError(
            f"{type(model).__name__} already has a text-guided head at {next(iter(find_heads(model)))!r}; "
            "call unwrap_model(model) first."
        )
    refuse_wrappers(model, "wrap")
    _check_choices(embeddings, head, init, new_classes)
    places = find_classifiers(model, classifier, example_input=example_input)
    with all_or_nothing(model, *([] if head is None else [head])):
        heads = _heads_for(model, places, embeddings, head, normalize, init, offline)
        for place, each in zip(places, heads, strict=True):
            check_fits(each, place, new_classes)
        for place, each in zip(places, heads, strict=True):
            fit_head(each, place)
        if init == "from_classifier":
            warm_start_all(model, places, heads, example_input)
        _warn_about_relu(places[0])
        _put_in(model, places, heads, example_input)
    return model


def _put_in(
    model: nn.Module, places: tuple[Classifier, ...], heads: list[TextGuidedHead], example_input: Tensor | None
) -> None:
    """Replace the classifiers by heads in place, and update what the model says about its classes."""
    expected = shapes_after(model, places[0].num_classes, heads[0].num_classes, example_input)
    before = [read_metadata(model, place.name, place.num_classes) for place in places]
    for place, each, metadata in zip(places, heads, before, strict=True):
        each.__dict__[_REPLACED] = _Replaced(place.leaf, metadata)
        each.train(place.leaf.training)
        each.requires_grad_(place.leaf.weight.requires_grad)
        _replace_module(model, place.leaf, each)
        update(model, place.name, metadata, each.num_classes, each.class_names)
    _check_shapes(model, expected, example_input)
    guard_loading(model)


def unwrap_model(model: M) -> M:
    """Put back the classifiers that :func:`wrap_model` replaced, bit for bit, in place.

    The classifiers move to the device and dtype that the head has now.

    Returns:
        The same model.

    Raises:
        ArgumentError: ``model`` is not a torch.nn.Module.
        ModelError: The model is not wrapped, or :func:`wrap_model` did not put its head there.

    >>> import torch, resilient_heads as rh
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 10))
    >>> layer = net[0]
    >>> rh.unwrap_model(rh.wrap_model(net, embeddings="cifar10"))[0] is layer
    True
    """
    require_module(model)
    refuse_wrappers(model, "unwrap")
    heads = find_heads(model)
    if not heads:
        raise ModelError(
            f"{type(model).__name__} is not wrapped: it has no text-guided head (a fused linear head is a plain "
            "nn.Linear, which cannot be undone)."
        )
    for name, head in heads.items():
        _check_can_restore(name, head)
    with all_or_nothing(model, *(head.__dict__[_REPLACED].layer for head in heads.values())):
        for name, head in heads.items():
            replaced: _Replaced = head.__dict__.pop(_REPLACED)
            like = next(head.parameters())
            _replace_module(model, head, replaced.layer.to(device=like.device, dtype=like.dtype).train(head.training))
            restore(model, name, replaced.metadata)
    return model


def is_wrapped(model: nn.Module) -> bool:
    """Whether a model holds a text-guided head; a fused cosine head is one, a fused linear head is a plain layer.

    Raises:
        ArgumentError: ``model`` is not a torch.nn.Module.

    >>> is_wrapped(nn.Linear(4, 2))
    False
    """
    require_module(model)
    return bool(find_heads(model))


@overload
def fuse(model: TextGuidedHead) -> nn.Linear | nn.Conv2d | FusedCosineHead: ...
@overload
def fuse(model: M) -> M: ...
def fuse(model: nn.Module) -> nn.Module:
    """Fuse latent and projection of each text-guided head into one layer, in place; a head alone returns its layer.

    A linear head becomes a plain ``nn.Linear`` or ``nn.Conv2d``, whose weights load into the stock model. A cosine head
    becomes a :class:`FusedCosineHead`: one matrix product that gives the scores and the vector whose norm divides them.
    The logits stay equal within rounding; the fused weights are computed in float64.

    Args:
        model: A wrapped model, or a head.

    Returns:
        The same model; for a head, the layer that replaces it.

    Raises:
        ArgumentError: ``model`` is not a torch.nn.Module.
        ModelError: There is no text-guided head to fuse, or its weights are quantised or sharded.

    >>> import torch, resilient_heads as rh
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 10))
    >>> rh.fuse(rh.wrap_model(net, embeddings="cifar10", normalize=False))
    Sequential(
      (0): Linear(in_features=8, out_features=10, bias=True)
    )
    """
    if isinstance(model, TextGuidedHead):
        return model.fused()
    require_module(model)
    refuse_wrappers(model, "fuse")
    heads = {name: head for name, head in find_heads(model).items() if isinstance(head, TextGuidedHead)}
    if not heads:
        raise ModelError(f"{type(model).__name__} has no unfused text-guided head; call wrap_model(model) first.")
    layers = [head.fused() for head in heads.values()]  # an error comes before the first replacement
    with all_or_nothing(model):
        for (name, head), fused in zip(heads.items(), layers, strict=True):
            if not isinstance(fused, FusedCosineHead):
                allow_reset(model, name)  # the model is a stock one again
            elif _REPLACED in head.__dict__:
                fused.__dict__[_REPLACED] = head.__dict__[_REPLACED]
            _replace_module(model, head, fused)
    return model


def _replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace a module of a model in place, under every name that the model has for it."""
    for name in [name for name, module in model.named_modules(remove_duplicate=False) if module is old]:
        parent, _, key = name.rpartition(".")
        setattr(model.get_submodule(parent), key, new)


def _check_choices(embeddings: object, head: TextGuidedHead | None, init: Start, new_classes: bool) -> None:
    """Raise ArgumentError for arguments that contradict each other, ModelError for a head that is in use."""
    if init == "from_classifier" and new_classes:
        raise ArgumentError(
            'init="from_classifier" keeps the decisions for the old classes; it cannot go with new_classes=True.'
        )
    if head is None:
        return
    if embeddings is not None:
        raise ArgumentError("Pass either embeddings= or head=, not both.")
    if init not in ("descriptions", "from_classifier"):
        raise ArgumentError(f"init={init!r} does not apply to a head that exists already; build the head with it.")
    instance_of("head", head, TextGuidedHead, example="rh.TextGuidedHead(None, embeddings)")
    if _REPLACED in head.__dict__:
        raise ModelError("The head is in a model already; build another one, or unwrap that model first.")


def _heads_for(
    model: nn.Module,
    places: tuple[Classifier, ...],
    embeddings: ClassEmbeddings | str | None,
    head: TextGuidedHead | None,
    normalize: bool,
    init: Start,
    offline: bool,
) -> list[TextGuidedHead]:
    """Return one head per classifier: the one given, or new ones."""
    if head is None:
        text = text_for(places[0], embeddings, init, offline)
        return [build_head(place, text, normalize, init) for place in places]
    if len(places) > 1:
        raise ModelError(
            f"{type(model).__name__} has {len(places)} classifiers ({', '.join(place.name for place in places)}), and "
            "one head cannot replace them all; pass embeddings= instead."
        )
    return [head]


def _check_shapes(model: nn.Module, expected: tuple[tuple[int, ...], ...] | None, example_input: Tensor | None) -> None:
    """Raise ModelError if the output's shape did not follow the number of classes."""
    if expected is None:
        return
    seen = trace(model, example_input)
    if seen is None or seen.shapes != expected:
        shapes = "no output" if seen is None else str(seen.shapes)
        raise ModelError(
            f"With the new classes {type(model).__name__} gives {shapes} instead of {expected}: something after the "
            "classifier depends on their number. Build the model with that number, then wrap it."
        )


def _check_can_restore(name: str, head: nn.Module) -> None:
    """Raise ModelError unless the layer that a head replaced can be put back."""
    if not name:
        raise ModelError("This is the head itself; pass the model that contains it.")
    if _REPLACED not in head.__dict__:
        raise ModelError(f"wrap_model did not put the head at {name!r} there, so no layer can be put back.")
    weight = next(head.parameters(), None)
    if weight is None:
        raise ModelError(f"The head at {name!r} is quantised; unwrap the model that it was made from.")
    if head.__dict__[_REPLACED].layer.weight.is_meta and not weight.is_meta:
        raise ModelError(f"The layer that the head at {name!r} replaced was on the meta device and has no values.")


def _warn_about_relu(place: Classifier) -> None:
    """Warn if a ReLU follows the classifier: it removes negative logits, half of a cosine head's range."""
    following = getattr(place.parent, str(int(place.key) + 1), None) if place.key.isdigit() else None
    if isinstance(following, nn.ReLU):
        warnings.warn(
            f"A ReLU follows the classifier {place.name!r} and stays in the model, so its logits are never negative.",
            UserWarning,
            stacklevel=3,
        )
