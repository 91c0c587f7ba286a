"""Find where a model keeps its classifiers."""

import logging
from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from resilient_heads.errors import ArgumentError, ModelError
from resilient_heads.heads.find.adapters import (
    is_auxiliary,
    refuse_detectors,
    timm_classifiers,
    transformers_classifiers,
    with_auxiliary,
)
from resilient_heads.heads.find.candidates import Classifier, candidates, is_leaf, leaf_names, place_of, why_not
from resilient_heads.heads.find.output import check_only_vector, check_reaches_vectors, check_vectors, untraced
from resilient_heads.heads.find.trace import Trace, trace
from resilient_heads.heads.fused_cosine import FusedCosineHead
from resilient_heads.heads.text_guided import TextGuidedHead
from resilient_heads.heads.wrappers import Action
from resilient_heads.wrappers import require_module

logger = logging.getLogger(__name__)


def find_classifiers(
    model: nn.Module,
    names: str | Sequence[str] | None = None,
    *,
    example_input: Tensor | None = None,
    action: Action = "wrap",
) -> tuple[Classifier, ...]:
    """Find every layer that gives class scores, the main one first.

    The function takes the first of these that exists: the layers that ``names`` gives; those that timm's
    ``pretrained_cfg["classifier"]`` names; in transformers models, the layers outside the backbone with
    ``config.num_labels`` outputs; the module registered last among those with parameters. It adds the classifiers of
    auxiliary branches.

    It then checks the result in one forward pass of a copy without weights (:func:`trace`): the output must be one
    vector a sample, each classifier must reach it, and no other layer may give class scores. If the module registered
    last does not give the output, the pass must show exactly one layer that does. If no such pass is possible, the user
    or the model's library must name the classifiers.

    Args:
        model: The model; it is not run.
        names: Dotted path of the layer, or several.
        example_input: A batch that the model accepts. Only its shape and dtype are used. Needed for models whose input
            shape cannot be guessed from their first layer.
        action: What the caller does to the classifiers, for messages.

    Raises:
        ArgumentError: ``model`` is not a module, or ``names`` is not a path.
        ModelError: No such layer exists, it is not a Linear or 1x1 Conv2d, or another layer gives class scores too; the
            output is not one vector a sample; nothing shows what gives it.
    """
    require_module(model)
    refuse_detectors(model, action)
    if names is None:
        _refuse_quantised(model, action)
    seen = trace(model, example_input, required=example_input is not None)
    if names is not None:
        paths = _given(model, names, action)
    else:
        paths = with_auxiliary(model, _named_or_last(model, seen, action, guessed=example_input is None))
    places = tuple(place_of(model, path) for path in paths)
    if len({place.num_classes for place in places}) > 1:
        sizes = ", ".join(f"{place.name!r} has {place.num_classes}" for place in places)
        raise ModelError(f"{type(model).__name__}'s classifiers differ in their number of classes: {sizes}.")
    _check_ties(model, places)
    _check_against(model, places, seen, action)
    return places


def find_heads(model: nn.Module) -> dict[str, TextGuidedHead | FusedCosineHead]:
    """Return the text-guided heads of a model, by dotted path."""
    return {
        name: module for name, module in model.named_modules() if isinstance(module, TextGuidedHead | FusedCosineHead)
    }


def layer_names(names: object) -> tuple[str, ...]:
    """Return ``classifier=`` as a tuple of paths.

    Raises:
        ArgumentError: ``names`` is neither a path nor a sequence of paths.
    """
    paths = (names,) if isinstance(names, str) else tuple(names) if isinstance(names, Iterable) else (None,)
    if not all(isinstance(path, str) for path in paths):
        raise ArgumentError(f'classifier= must be the path of a layer, such as "fc", or several; found {names!r}.')
    return paths


def _given(model: nn.Module, names: str | Sequence[str], action: Action) -> tuple[str, ...]:
    """Return the layers that ``classifier=`` names."""
    paths = tuple(_layer_at(model, path, action) for path in layer_names(names))
    if not paths:
        raise ModelError(f"classifier= names no layer. {candidates(model)}")
    if len(set(paths)) < len(paths):
        raise ModelError(f"classifier= names a layer twice: {', '.join(paths)}.")
    return paths


def _layer_at(model: nn.Module, path: str, action: Action) -> str:
    """Return the path of the layer at a path, or of the only layer in the container there."""
    module = dict(model.named_modules(remove_duplicate=False)).get(path)
    if module is None or not path:
        raise ModelError(f"{type(model).__name__} has no layer named {path!r}. {candidates(model)}")
    if is_leaf(module):
        return path
    inner = leaf_names(model, path)
    if len(inner) == 1:
        return inner[0]
    hint = f"It contains {', '.join(inner)}; name one of them." if inner else candidates(model)
    raise ModelError(f"{path!r} is a {why_not(module, action)}; a classifier must be a Linear or a 1x1 Conv2d. {hint}")


def _named_or_last(model: nn.Module, seen: Trace | None, action: Action, *, guessed: bool) -> tuple[str, ...]:
    """Return the layers that the model's library names, or the last one.

    A layer of any output can be protected, but only class scores can be replaced.
    """
    named = timm_classifiers(model, action) or transformers_classifiers(model, action, traced=seen is not None)
    if seen is not None and seen.direct and action == "wrap":
        check_vectors(model, seen, guessed=guessed)
    if named:
        return named
    last = _by_position(model, seen, action)
    if last:  # otherwise the model is a layer, which the caller refuses
        if seen is None:
            raise untraced(model, action)
        if action == "wrap":
            check_only_vector(model, seen)
    return (last,)


def _by_position(model: nn.Module, seen: Trace | None, action: Action) -> str:
    """Return the module registered last among those with parameters, or the only layer that gives the output."""
    with_parameters: list[tuple[str, nn.Module]] = [
        (path, module)
        for path, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None and not is_auxiliary(path)
    ]
    if not with_parameters:
        raise ModelError(f"{type(model).__name__} has no parameters, so it has no classifier to replace.")
    name, layer = with_parameters[-1]
    if is_leaf(layer) and (not name or seen is None or seen.direct is None or name in seen.direct):
        return name
    if seen is not None and seen.direct is not None and len(seen.last) == 1:
        logger.info("The last layer %r is not the classifier; %r gives the output.", name, seen.last[0])
        return seen.last[0]
    if is_leaf(layer):
        several = seen.last if seen is not None else ()
        others = f"several layers do: {', '.join(several)}" if several else "no plain layer does"
        raise ModelError(
            f"{type(model).__name__}'s last layer {name!r} does not give its output; {others}. {candidates(model)}"
        )
    auxiliary = [path for path in leaf_names(model) if is_auxiliary(path)]
    remark = f" ({auxiliary[-1]!r} belongs to an auxiliary branch)" if auxiliary else ""
    raise ModelError(
        f"{type(model).__name__} has no classifier where one was expected: its last layer "
        f"{name!r} is a {why_not(layer, action)}{remark}. {candidates(model)}"
    )


def _refuse_quantised(model: nn.Module, action: Action) -> None:
    """Raise ModelError if a layer is quantised; FloatFunctional is the float stand-in for a quantised operation."""
    for name, module in model.named_modules():
        if "quantized" in type(module).__module__.split(".") and type(module).__name__ != "FloatFunctional":
            raise ModelError(
                f"{type(model).__name__} is quantised ({name!r} is a {type(module).__name__}); {action} it first, then "
                "quantise."
            )


def _check_ties(model: nn.Module, places: tuple[Classifier, ...]) -> None:
    """Raise ModelError if a classifier shares its weight with another layer: replacing it would untie the two."""
    for place in places:
        for name, module in model.named_modules():
            if module is not place.leaf and any(p is place.leaf.weight for p in module.parameters(recurse=False)):
                raise ModelError(
                    f"The weight of {place.name!r} is shared with {name!r}; give the classifier a weight of its own "
                    "first."
                )


def _check_against(model: nn.Module, places: tuple[Classifier, ...], seen: Trace | None, action: Action) -> None:
    """Raise ModelError if the forward pass contradicts the classifiers."""
    if seen is None:
        logger.info(
            "%s could not be traced without data, so nothing proves that %s gives its output; example_input= may help.",
            type(model).__name__,
            places[0].name,
        )
        return
    first_names = {module: name for name, module in model.named_modules()}  # a trace knows a module by its first name
    direct = seen.direct or {}
    for place in places:
        name = first_names[place.leaf]
        silent = seen.direct is not None and name not in seen.direct
        if not is_auxiliary(place.name) and (silent or name not in seen.ran):
            giving = f"What gives it: {', '.join(seen.last)}." if seen.last else candidates(model)
            raise ModelError(f"{place.name!r} does not give the output of {type(model).__name__}. {giving}")
    names = {first_names[place.leaf] for place in places}
    if action == "wrap":
        check_reaches_vectors(model, seen, sorted(names))
    rivals = [name for name in sorted(direct) if name not in names and direct[name] == places[0].num_classes]
    if rivals:
        every = ", ".join(f'"{name}"' for name in [*(place.name for place in places), *rivals])
        raise ModelError(
            f"{type(model).__name__} has more classifiers than {places[0].name!r}: {', '.join(rivals)} would stay and "
            f"contribute to the output. Name them all: classifier=({every})."
        )
