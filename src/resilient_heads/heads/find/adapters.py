"""Read from timm and transformers models where their classifiers are; neither library is imported."""

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from resilient_heads.errors import ModelError
from resilient_heads.heads.find.candidates import candidates, is_leaf, leaf_names, place_of, why_not
from resilient_heads.heads.wrappers import Action

_CLASSIFICATION = re.compile("For(Image|Sequence|Video|Audio)Classification")


def refuse_detectors(model: nn.Module, action: Action) -> None:
    """Raise ModelError for torchvision's detectors, which run on no batch without values and so cannot be traced."""
    if any(kind.__module__.startswith("torchvision.models.detection.") for kind in type(model).__mro__):
        raise ModelError(
            f"{type(model).__name__} is a detector: it gives boxes with scores, not one logit vector a sample. To "
            f"{action} a head, pass a classifier, such as one that you build from the detector's backbone."
        )


def with_auxiliary(model: nn.Module, names: tuple[str, ...]) -> tuple[str, ...]:
    """Add the classifiers of auxiliary branches (GoogLeNet, Inception), which only run in training mode."""
    classes = {place_of(model, name).num_classes for name in names if name}
    classifiers = list(names)
    for branch, _ in model.named_modules():
        parent, _, key = branch.rpartition(".")
        if key.casefold().startswith("aux") and not is_auxiliary(parent):
            leaves = leaf_names(model, branch)
            if leaves and leaves[-1] not in classifiers and place_of(model, leaves[-1]).num_classes in classes:
                classifiers.append(leaves[-1])
    return tuple(classifiers)


def is_auxiliary(name: str) -> bool:
    """Whether a path leads into an auxiliary branch."""
    return any(part.startswith("aux") for part in name.casefold().split("."))


def timm_classifiers(model: nn.Module, action: Action) -> tuple[str, ...] | None:
    """Return the layers that ``pretrained_cfg["classifier"]`` names; None for a model that is not timm's.

    Raises:
        ModelError: The model was built without a classifier.
    """
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if not isinstance(config, Mapping):
        return None
    if getattr(model, "num_classes", None) == 0:
        raise ModelError(
            f"{type(model).__name__} was built with num_classes=0 and has no classifier; call "
            f"model.reset_classifier(num_classes) first, then {action} it."
        )
    named = config.get("classifier")
    names = (named,) if isinstance(named, str) else tuple(named or ())
    modules = dict(model.named_modules(remove_duplicate=False))
    # The configuration of a distilled model names two heads, even if the model was built with one of them.
    present = [name for name in names if not isinstance(modules.get(name), nn.Identity | None)]
    leaves = [[name] if is_leaf(modules[name]) else _leaves_of(model, name, action) for name in present]
    return tuple(leaf for group in leaves for leaf in group) or None


def _leaves_of(model: nn.Module, name: str, action: Action) -> list[str]:
    """Return the classifiers in a container: all of a ModuleList, the last one of any other."""
    leaves = leaf_names(model, name)
    container = model.get_submodule(name)
    if not leaves:
        kind = why_not(container, action)
        raise ModelError(f"{type(model).__name__}'s classifier {name!r} is a {kind}. {candidates(model)}")
    return leaves if isinstance(container, nn.ModuleList) else leaves[-1:]


def transformers_classifiers(model: nn.Module, action: Action, *, traced: bool) -> tuple[str, ...] | None:
    """Return the layers outside the backbone that have ``config.num_labels`` outputs; None for other models.

    A model that is not ``traced`` must be called a classifier of images, sequences, videos or sound: in models for
    other tasks, such layers give a vector per token, pixel or box.

    Raises:
        ModelError: The model was built without a classifier.
    """
    if not any(kind.__name__ == "PreTrainedModel" for kind in type(model).__mro__):
        return None
    config: Any = getattr(model, "config", None)
    labels = getattr(config, "num_labels", None)
    if labels == 0:
        raise ModelError(
            f"{type(model).__name__} was built with num_labels=0 and has no classifier; build it with the number of "
            f"labels, then {action} it."
        )
    if not traced and not any(_CLASSIFICATION.search(kind.__name__) for kind in type(model).__mro__):
        return None
    prefix = getattr(model, "base_model_prefix", "")
    outside = [name for name in leaf_names(model) if name and not (prefix and f"{name}.".startswith(f"{prefix}."))]
    return tuple(name for name in outside if place_of(model, name).num_classes == labels) or None
