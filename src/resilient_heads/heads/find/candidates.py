"""Which layers can be a classifier, and how they are named to a reader."""

from dataclasses import dataclass

from torch import Tensor, nn

from resilient_heads.errors import ModelError
from resilient_heads.heads.wrappers import Action

Leaf = nn.Linear | nn.Conv2d

# Subclasses that compute what nn.Linear does; timm's differs in TorchScript only, where it casts.
_PLAIN = frozenset({"torch.nn.modules.linear.Linear", "timm.layers.linear.Linear"})


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
        return width(self.leaf)


def width(leaf: Leaf) -> int:
    """Return the outputs of a leaf."""
    return leaf.out_channels if isinstance(leaf, nn.Conv2d) else leaf.out_features


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is a plain Linear or a plain 1x1 convolution; lazy, quantised and adapted kinds are neither."""
    if type(module) is nn.Conv2d:
        plain = module.kernel_size == (1, 1) and module.stride == (1, 1) and module.groups == 1
        if not plain or module.padding not in ((0, 0), "valid", "same"):
            return False
    elif not _is_linear(module):
        return False
    # A quantised or sharded weight is a tensor subclass; one that weight_norm computes is no parameter.
    return type(module.weight) is nn.Parameter and module.weight.is_floating_point()


def _is_linear(module: nn.Module) -> bool:
    """Whether a module is a Linear that does nothing else: another subclass may."""
    kind = type(module)
    return isinstance(module, nn.Linear) and f"{kind.__module__}.{kind.__qualname__}" in _PLAIN


def leaf_names(model: nn.Module, below: str = "") -> list[str]:
    """Return the paths of a model's leaves, in the order of registration, optionally below one module only."""
    inner = model.get_submodule(below) if below else model
    names = [name for name, module in inner.named_modules() if is_leaf(module)]
    return [".".join(part for part in (below, name) if part) for name in names]


def place_of(model: nn.Module, name: str) -> Classifier:
    """Return the leaf of a name with its place.

    Raises:
        ModelError: The name is the model itself.
    """
    leaf = model.get_submodule(name)
    if not name:
        raise ModelError(
            f"The model is the {type(model).__name__} layer itself; pass the model that holds it, "
            "or build a TextGuidedHead in its stead."
        )
    parent_name, _, key = name.rpartition(".")
    assert isinstance(leaf, nn.Linear | nn.Conv2d)
    return Classifier(name, model.get_submodule(parent_name), key, leaf)


def candidates(model: nn.Module) -> str:
    """Return a sentence that names the layers that could be meant."""
    names = [name for name in leaf_names(model) if name]
    if not names:
        return "It has no Linear and no 1x1 Conv2d layer at all."
    return f'Name it: classifier="{names[-1]}" (candidates: {", ".join(names[-5:])}).'


def why_not(module: nn.Module, action: Action) -> str:
    """Return what keeps a module from being a classifier, as the end of a sentence "is a ..."."""
    kind = type(module).__name__
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
        return f"{kind} without sizes; run the model once on a batch, then {action} it"
    weight = getattr(module, "weight", None)
    if (
        (_is_linear(module) or type(module) is nn.Conv2d)
        and isinstance(weight, Tensor)
        and type(weight) is not nn.Parameter
    ):
        return (
            f"{kind} whose weight is a {type(weight).__name__} (quantised, sharded or computed); {action} it first, "
            "then quantise, shard or reparametrise"
        )
    if nn.utils.parametrize.is_parametrized(module):
        return f"{kind} with a parametrization; remove it first"
    return kind
