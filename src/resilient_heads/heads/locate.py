"""Where a model keeps its classifier."""

from dataclasses import dataclass

from torch import nn

from resilient_heads.errors import ModelError
from resilient_heads.heads.text_guided import FusedCosineHead, TextGuidedHead

Leaf = nn.Linear | nn.Conv2d


@dataclass(frozen=True, slots=True)
class Classifier:
    """A classifier leaf and its place.

    Attributes:
        name: Dotted path from the model.
        parent: The module that holds it.
        key: Its name in the parent.
        leaf: The Linear or 1x1 Conv2d.
    """

    name: str
    parent: nn.Module
    key: str
    leaf: Leaf

    @property
    def in_features(self) -> int:
        """F."""
        return self.leaf.in_channels if isinstance(self.leaf, nn.Conv2d) else self.leaf.in_features

    @property
    def num_classes(self) -> int:
        """Outputs of the leaf."""
        return self.leaf.out_channels if isinstance(self.leaf, nn.Conv2d) else self.leaf.out_features


def find_classifier(model: nn.Module, name: str | None = None) -> Classifier:
    """Find the layer that gives the class scores.

    Without a name it is the last module, in the order of registration, that has parameters of its own. That holds for
    every classifier of torchvision, and a model whose classifier was removed is recognised by it: there the last one is
    a normalisation layer or a convolution larger than 1x1. A layer that is registered last and never run is not seen
    for what it is; name the classifier there. A campaign lists such layers as skipped.

    Args:
        model: The model.
        name: Dotted path of the layer, where the model keeps it elsewhere.

    Raises:
        ModelError: There is no such layer, or it is no Linear and no 1x1 Conv2d.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"Expected a torch.nn.Module, found {type(model).__name__}.")
    if name is None:
        name, leaf = _last_with_parameters(model)
        if any(part.startswith("aux") for part in name.casefold().split(".")):
            raise ModelError(
                f"{type(model).__name__} has no classifier where one was expected: the last layer with parameters, "
                f"{name!r}, belongs to an auxiliary one. {_candidates(model)}"
            )
        if not _is_leaf(leaf):
            raise ModelError(
                f"{type(model).__name__} has no classifier where one was expected: its last layer "
                f"{name!r} is a {type(leaf).__name__}. {_candidates(model)}"
            )
    else:
        found = dict(model.named_modules(remove_duplicate=False)).get(name)
        if found is None or not name:
            raise ModelError(f"{type(model).__name__} has no layer named {name!r}. {_candidates(model)}")
        if not _is_leaf(found):
            raise ModelError(
                f"{name!r} is a {type(found).__name__}; a classifier must be a Linear or a 1x1 Conv2d. "
                f"{_candidates(model)}"
            )
        leaf = found
    if not name:
        raise ModelError(
            f"The model is the {type(model).__name__} layer itself; pass the model that holds it, "
            "or build a TextGuidedHead in its stead."
        )
    parent_name, _, key = name.rpartition(".")
    assert isinstance(leaf, nn.Linear | nn.Conv2d)
    return Classifier(name, model.get_submodule(parent_name), key, leaf)


def find_heads(model: nn.Module) -> dict[str, TextGuidedHead | FusedCosineHead]:
    """Return the text-guided heads within a model, by dotted path."""
    return {
        name: module for name, module in model.named_modules() if isinstance(module, TextGuidedHead | FusedCosineHead)
    }


def _last_with_parameters(model: nn.Module) -> tuple[str, nn.Module]:
    """Return the module registered last among those that hold parameters themselves."""
    for name, module in model.named_modules():
        if "quantized" in type(module).__module__.split("."):
            raise ModelError(
                f"{type(model).__name__} is quantised ({name!r} is a {type(module).__name__}); wrap it first, then "
                "quantise."
            )
    last: tuple[str, nn.Module] | None = None
    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            last = (name, module)
    if last is None:
        raise ModelError(f"{type(model).__name__} has no parameters, so it has no classifier to replace.")
    return last


def _is_leaf(module: nn.Module) -> bool:
    """Whether a module is a plain Linear or a plain 1x1 convolution; lazy and quantised kinds are neither."""
    if type(module) is nn.Conv2d:
        plain = module.kernel_size == (1, 1) and module.stride == (1, 1) and module.groups == 1
        return plain and module.padding in ((0, 0), "valid", "same")
    return type(module) is nn.Linear


def _candidates(model: nn.Module) -> str:
    """Return a sentence that names the layers that could be meant."""
    names = [name for name, module in model.named_modules() if name and _is_leaf(module)]
    if not names:
        return "It has no Linear and no 1x1 Conv2d layer at all."
    return f'Name it: classifier="{names[-1]}" (candidates: {", ".join(names[-5:])}).'
