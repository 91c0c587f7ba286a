"""Where timm and transformers say their classifiers are; neither is imported."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from resilient_heads.errors import ModelError
from resilient_heads.heads.find.candidates import candidates, is_leaf, leaf_names, place_of, why_not
from resilient_heads.heads.wrappers import Action


def named_by_library(model: nn.Module, action: Action) -> tuple[str, ...] | None:
    """Return the paths of the classifiers that a library's conventions name, or None for any other model.

    Args:
        model: The model.
        action: What is to be done to the classifiers, for messages.

    Raises:
        ModelError: The model was built without a classifier.
    """
    return _timm(model, action) or _transformers(model, action)


def with_auxiliary(model: nn.Module, names: tuple[str, ...]) -> tuple[str, ...]:
    """Add the classifiers of auxiliary branches, as of GoogLeNet and Inception, which answer in training only."""
    classes = {place_of(model, name).num_classes for name in names if name}
    found = list(names)
    for branch, _ in model.named_modules():
        if branch.rpartition(".")[2].casefold().startswith("aux") and not is_auxiliary(branch.rpartition(".")[0]):
            leaves = leaf_names(model, branch)
            if leaves and leaves[-1] not in found and place_of(model, leaves[-1]).num_classes in classes:
                found.append(leaves[-1])
    return tuple(found)


def is_auxiliary(name: str) -> bool:
    """Whether a path leads into an auxiliary branch."""
    return any(part.startswith("aux") for part in name.casefold().split("."))


def _timm(model: nn.Module, action: Action) -> tuple[str, ...] | None:
    """Return what ``pretrained_cfg["classifier"]`` names, a string or a tuple of them."""
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
    if not names:
        return None
    modules = dict(model.named_modules(remove_duplicate=False))
    # A distilled model's configuration may name both heads where the variant at hand was built with one.
    present = [name for name in names if not isinstance(modules.get(name), nn.Identity | None)]
    if not present:
        return None
    return tuple(
        leaf for name in present for leaf in ([name] if is_leaf(modules[name]) else _only(model, name, action))
    )


def _only(model: nn.Module, name: str, action: Action) -> list[str]:
    """Return the leaves that a container holds."""
    found = leaf_names(model, name)
    if not found:
        kind = why_not(model.get_submodule(name), action)
        raise ModelError(f"{type(model).__name__}'s classifier {name!r} is a {kind}. {candidates(model)}")
    return found if isinstance(model.get_submodule(name), nn.ModuleList) else found[-1:]


def _transformers(model: nn.Module, action: Action) -> tuple[str, ...] | None:
    """Return the layers of ``config.num_labels`` outputs outside the backbone."""
    config: Any = getattr(model, "config", None)
    if not any(kind.__name__ == "PreTrainedModel" for kind in type(model).__mro__):
        return None
    labels = getattr(config, "num_labels", None)
    if labels == 0:
        raise ModelError(
            f"{type(model).__name__} was built with num_labels=0 and has no classifier; build it with the number of "
            f"labels, then {action} it."
        )
    backbone = getattr(model, "base_model_prefix", "")
    outside = [
        name
        for name in leaf_names(model)
        if name
        and not (backbone and f"{name}.".startswith(f"{backbone}."))
        and place_of(model, name).num_classes == labels
    ]
    return tuple(outside) or None
