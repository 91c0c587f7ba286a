"""Which layers can be a classifier, and how messages name them."""

from dataclasses import dataclass
from typing import TypeGuard

from torch import Tensor, nn

from resilient_heads.errors import ModelError
from resilient_heads.heads.wrappers import Action

Leaf = nn.Linear | nn.Conv2d

# Classes that compute exactly what nn.Linear does. That of timm differs only in TorchScript, where it casts.
_PLAIN = frozenset({"torch.nn.modules.linear.Linear", "timm.layers.linear.Linear"})


@dataclass(frozen=True, slots=True)
class Classifier:
    """A layer that gives class scores, and its place in the model.

    Attributes:
        name: Dotted path of the layer.
        parent: The module that holds the layer.
        key: Name of the layer in its parent.
        leaf: The layer: a Linear or a 1x1 Conv2d.
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
        """C."""
        return out_features(self.leaf)


def out_features(leaf: Leaf) -> int:
    """Return the number of outputs of a layer."""
    return leaf.out_channels if isinstance(leaf, nn.Conv2d) else leaf.out_features


def is_leaf(module: nn.Module | None) -> TypeGuard[Leaf]:
    """Whether a module is a plain Linear or a plain 1x1 convolution: not lazy, quantised, sharded or adapted."""
    if type(module) is nn.Conv2d:
        plain = module.kernel_size == (1, 1) and module.stride == (1, 1) and module.groups == 1
        if not plain or module.padding not in ((0, 0), "valid", "same"):
            return False
    elif not _is_linear(module):
        return False
    # A quantised or sharded weight is a tensor subclass; a weight that weight_norm computes is not a parameter.
    return type(module.weight) is nn.Parameter and module.weight.is_floating_point()


def _is_linear(module: nn.Module | None) -> TypeGuard[nn.Linear]:
    """Whether a module computes exactly what nn.Linear does; a subclass may compute something else."""
    kind = type(module)
    return isinstance(module, nn.Linear) and f"{kind.__module__}.{kind.__qualname__}" in _PLAIN


def leaf_names(model: nn.Module, below: str = "") -> list[str]:
    """Return the paths of the candidate layers in the order of registration, of the whole model or below one module."""
    inner = model.get_submodule(below) if below else model
    names = [name for name, module in inner.named_modules() if is_leaf(module)]
    return [".".join(part for part in (below, name) if part) for name in names]


def place_of(model: nn.Module, name: str) -> Classifier:
    """Return the layer at a path, with its place.

    Raises:
        ModelError: The path is that of the model itself.
    """
    leaf = model.get_submodule(name)
    if not name:
        raise ModelError(
            f"The model is itself a {type(model).__name__} layer; pass the model that contains it, "
            "or use a TextGuidedHead instead of the layer."
        )
    parent_name, _, key = name.rpartition(".")
    assert isinstance(leaf, nn.Linear | nn.Conv2d)
    return Classifier(name, model.get_submodule(parent_name), key, leaf)


def candidates(model: nn.Module) -> str:
    """Return a sentence that tells the user which layers ``classifier=`` can name."""
    names = [name for name in leaf_names(model) if name]
    if not names:
        return "The model has no Linear and no 1x1 Conv2d layer."
    return f'Name it: classifier="{names[-1]}" (candidates: {", ".join(names[-5:])}).'


def why_not(module: nn.Module, action: Action) -> str:
    """Return why a module cannot be a classifier, as the end of a sentence that starts with "is a"."""
    kind = type(module).__name__
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
        return f"{kind} without sizes; run the model once on a batch, then {action} it"
    weight = getattr(module, "weight", None)
    layer = _is_linear(module) or type(module) is nn.Conv2d
    if layer and isinstance(weight, Tensor) and type(weight) is not nn.Parameter:
        return (
            f"{kind} whose weight is a {type(weight).__name__} (quantised, sharded or computed); {action} it first, "
            "then quantise, shard or reparametrise"
        )
    if nn.utils.parametrize.is_parametrized(module):
        return f"{kind} with a parametrization; remove it first"
    return kind
