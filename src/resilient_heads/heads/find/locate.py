"""Where a model keeps its classifiers."""

import logging
from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from resilient_heads.errors import ModelError
from resilient_heads.heads.find.adapters import is_auxiliary, named_by_library, with_auxiliary
from resilient_heads.heads.find.candidates import Classifier as Classifier
from resilient_heads.heads.find.candidates import Leaf as Leaf
from resilient_heads.heads.find.candidates import candidates, is_leaf, leaf_names, place_of, why_not
from resilient_heads.heads.find.trace import Trace, trace
from resilient_heads.heads.fused_cosine import FusedCosineHead
from resilient_heads.heads.text_guided import TextGuidedHead
from resilient_heads.heads.wrappers import Action

logger = logging.getLogger(__name__)


def find_classifier(model: nn.Module, name: str | None = None) -> Classifier:
    """Find the layer that gives the class scores: the first of :func:`find_classifiers`.

    Args:
        model: The model.
        name: Dotted path of the layer, where the model keeps it elsewhere.

    Raises:
        ModelError: There is no such layer, or it is no Linear and no 1x1 Conv2d.
    """
    return find_classifiers(model, name)[0]


def find_classifiers(
    model: nn.Module,
    names: str | Sequence[str] | None = None,
    *,
    sample: Tensor | None = None,
    action: Action = "wrap",
) -> tuple[Classifier, ...]:
    """Find every layer that gives class scores, the main one first.

    In this order: the names given; what timm's ``pretrained_cfg["classifier"]`` names; in transformers, the layers of
    ``config.num_labels`` outputs outside the backbone; the last module, in the order of registration, that has
    parameters of its own. Auxiliary branches are added. What was found is then checked against one pass of a weightless
    twin (``trace``): a layer that does not reach the output is no classifier, and another one
    that does is a second classifier. Where the last layer is none, the pass must show exactly one.

    Args:
        model: The model; it is not run.
        names: Dotted path of the layer, or several.
        sample: A batch as the model takes it, of which only shape and dtype are used, for models whose input cannot be
            guessed from their first layer.
        action: What is to be done to the classifiers, for messages.

    Raises:
        ModelError: There is no such layer, it is no Linear and no 1x1 Conv2d, or another contributes to the output.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"Expected a torch.nn.Module, found {type(model).__name__}.")
    if names is not None:
        found = tuple(_given(model, name, action) for name in layer_names(names))
        if not found:
            raise ModelError(f"classifier= names no layer. {candidates(model)}")
        if len(set(found)) < len(found):
            raise ModelError(f"classifier= names a layer twice: {', '.join(found)}.")
        seen = trace(model, sample)
    else:
        _refuse_quantised(model, action)
        seen = trace(model, sample)
        library = named_by_library(model, action)
        found = with_auxiliary(model, library if library is not None else (_by_position(model, seen, action),))
    places = tuple(place_of(model, name) for name in found)
    _check_widths(model, places)
    _check_ties(model, places)
    if sample is not None and seen is None:
        raise ModelError(
            f"{type(model).__name__} does not take a batch of shape {tuple(sample.shape)} on the meta device; pass a "
            "sample that it takes, or none."
        )
    _check_against(model, places, seen)
    return places


def find_heads(model: nn.Module) -> dict[str, TextGuidedHead | FusedCosineHead]:
    """Return the text-guided heads within a model, by dotted path."""
    return {
        name: module for name, module in model.named_modules() if isinstance(module, TextGuidedHead | FusedCosineHead)
    }


def layer_names(names: object) -> tuple[str, ...]:
    """Return ``classifier=`` as paths.

    Raises:
        ModelError: It is neither a path nor a sequence of paths.
    """
    found = (names,) if isinstance(names, str) else tuple(names) if isinstance(names, Iterable) else ()
    if (not found and not isinstance(names, Iterable)) or not all(isinstance(name, str) for name in found):
        raise ModelError(f'classifier= must be the path of a layer, such as "fc", or several; found {names!r}.')
    return found


def _given(model: nn.Module, name: str, action: Action) -> str:
    """Return the path of the leaf that a user's path means: itself, or the only one in a container."""
    found = dict(model.named_modules(remove_duplicate=False)).get(name)
    if found is None or not name:
        raise ModelError(f"{type(model).__name__} has no layer named {name!r}. {candidates(model)}")
    if is_leaf(found):
        return name
    inner = leaf_names(model, name)
    if len(inner) == 1:
        return inner[0]
    hint = f"It holds {', '.join(inner)}; name one of them." if inner else candidates(model)
    raise ModelError(f"{name!r} is a {why_not(found, action)}; a classifier must be a Linear or a 1x1 Conv2d. {hint}")


def _by_position(model: nn.Module, seen: Trace | None, action: Action) -> str:
    """Return the module registered last among those with parameters, or the only one that the trace allows."""
    last: tuple[str, nn.Module] | None = None
    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None and not is_auxiliary(name):
            last = (name, module)
    auxiliary = [name for name, module in model.named_modules() if is_leaf(module) and is_auxiliary(name)]
    if last is None:
        raise ModelError(f"{type(model).__name__} has no parameters, so it has no classifier to replace.")
    name, leaf = last
    if is_leaf(leaf) and (not name or seen is None or seen.direct is None or name in seen.direct):
        return name
    if seen is not None and seen.direct is not None and len(seen.last) == 1:
        logger.info("The last layer %r is no classifier; %r gives the output.", name, seen.last[0])
        return seen.last[0]
    if is_leaf(leaf):
        several = seen.last if seen is not None else ()
        found = f"several do: {', '.join(several)}" if several else "no plain layer does"
        raise ModelError(
            f"{type(model).__name__}'s last layer {name!r} does not give its output; {found}. {candidates(model)}"
        )
    remark = f" ({auxiliary[-1]!r} belongs to an auxiliary one)" if auxiliary else ""
    raise ModelError(
        f"{type(model).__name__} has no classifier where one was expected: its last layer "
        f"{name!r} is a {why_not(leaf, action)}{remark}. {candidates(model)}"
    )


def _refuse_quantised(model: nn.Module, action: Action) -> None:
    """Raise ModelError where a layer is quantised."""
    for name, module in model.named_modules():
        if "quantized" in type(module).__module__.split("."):
            raise ModelError(
                f"{type(model).__name__} is quantised ({name!r} is a {type(module).__name__}); {action} it first, then "
                "quantise."
            )


def _check_widths(model: nn.Module, places: tuple[Classifier, ...]) -> None:
    """Raise ModelError unless all classifiers tell the same classes apart."""
    if len({place.num_classes for place in places}) > 1:
        sizes = ", ".join(f"{place.name!r} has {place.num_classes}" for place in places)
        raise ModelError(f"{type(model).__name__}'s classifiers differ in their number of classes: {sizes}.")


def _check_ties(model: nn.Module, places: tuple[Classifier, ...]) -> None:
    """Raise ModelError where a classifier's weight serves another layer too: replacing it would untie them unseen."""
    for place in places:
        for name, module in model.named_modules():
            if module is not place.leaf and any(p is place.leaf.weight for p in module.parameters(recurse=False)):
                raise ModelError(
                    f"The weight of {place.name!r} is shared with {name!r}; give the classifier a weight of its own "
                    "first."
                )


def _check_against(model: nn.Module, places: tuple[Classifier, ...], seen: Trace | None) -> None:
    """Raise ModelError where the pass contradicts what was found."""
    if seen is None:
        logger.info(
            "%s could not be followed without data, so it is unproven that %s gives its output; sample= may help.",
            type(model).__name__,
            places[0].name,
        )
        return
    aliases = _aliases(model)
    names = {aliases[place.leaf] for place in places}
    others = [name for name in sorted(seen.direct or {}) if name not in names]
    for place in places:
        silent = seen.direct is not None and aliases[place.leaf] not in seen.direct
        if not is_auxiliary(place.name) and (silent or aliases[place.leaf] not in seen.ran):
            giving = f"What gives it: {', '.join(seen.last)}." if seen.last else candidates(model)
            raise ModelError(f"{place.name!r} does not give the output of {type(model).__name__}. {giving}")
    rivals = [name for name in others if (seen.direct or {})[name] == places[0].num_classes]
    if rivals:
        every = ", ".join(f'"{name}"' for name in [*(place.name for place in places), *rivals])
        raise ModelError(
            f"{type(model).__name__} has more classifiers than {places[0].name!r}: {', '.join(rivals)} would stay and "
            f"contribute to the output. Name them all: classifier=({every})."
        )


def _aliases(model: nn.Module) -> dict[nn.Module, str]:
    """Return each module's first name, by which a trace knows it."""
    return {module: name for name, module in model.named_modules()}
