"""Protect the heads of a model, and remove the protection."""

from collections.abc import Sequence
from typing import Never, TypeVar

from torch import nn

from resilient_heads.errors import ArgumentError, ModelError
from resilient_heads.heads.find.locate import find_classifiers, layer_names
from resilient_heads.heads.protection.layers import (
    Protectable,
    ProtectedConv2d,
    ProtectedLinear,
    find_protectable,
    find_protected,
    protect_layer_,
)
from resilient_heads.heads.protection.options import Protection
from resilient_heads.heads.swap.undo import all_or_nothing
from resilient_heads.heads.wrappers import refuse_wrappers
from resilient_heads.wrappers import require_module

M = TypeVar("M", bound=nn.Module)


def protect_(
    model: M,
    *unnamed: Never,
    bounds: bool = False,
    checksum: bool = False,
    median: bool = False,
    classifier: str | Sequence[str] | None = None,
) -> M:
    """Protect every head of a model against faults, in place.

    Parameters, state dict and fault-free logits keep their bits. The protection acts in evaluation mode and replaces
    an earlier protection. A plain layer stays the same object, with its hooks and attributes.
    :class:`Protection` describes each protection, ``docs/protection.md`` the faults that remain.

    Args:
        model: A wrapped or fused model, a plain classifier, or a head.
        *unnamed: Nothing: every option has a name.
        bounds: Range restriction: values that no fault-free input can cause become 0.
        checksum: ABFT checksum: compare sums, and compute again where one is wrong.
        median: Median vote (TMR): compute three times and take the median; not with ``checksum``.
        classifier: Dotted path of a plain layer, or several, if the model has no text-guided head; the layers may be
            protected already.

    Returns:
        The same model.

    Raises:
        ArgumentError: No protection is chosen, or both ``checksum`` and ``median``; or an option without its name.
        ModelError: A layer does not exist or cannot be protected, or the model is compiled.

    >>> import torch, resilient_heads as rh
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 3)).eval()
    >>> print(rh.protect_(net, bounds=True, median=True)[0].protection)
    bounds + median
    """
    if unnamed:
        raise ArgumentError(f"Pass protections by name: protect_(model, checksum=True); found {unnamed[0]!r:.60}.")
    protection = Protection(bounds=bounds, checksum=checksum, median=median)
    require_module(model)
    refuse_wrappers(model, "protect")
    if type(model) in (nn.Linear, nn.Conv2d):
        raise ModelError(
            f"The model is itself a {type(model).__name__} layer; pass the model that contains it, or a TextGuidedHead."
        )
    heads = find_protectable(model)
    if heads and classifier is not None:
        heads = _named(model, heads, classifier)
    plain = () if heads else find_classifiers(model, classifier, action="protect")
    with all_or_nothing(model):
        for head in heads.values():
            head.protect(protection)
        for place in plain:
            protect_layer_(place.leaf, protection)
    return model


def unprotect_(model: M) -> M:
    """Remove the protection from every head of a model, in place.

    Returns:
        The same model.

    Raises:
        ArgumentError: ``model`` is not a torch.nn.Module.
        ModelError: No head is protected.

    >>> import torch, resilient_heads as rh
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 3))
    >>> rh.unprotect_(rh.protect_(net, checksum=True))
    Sequential(
      (0): Linear(in_features=8, out_features=3, bias=True)
    )
    """
    require_module(model)
    refuse_wrappers(model, "unprotect")
    heads = find_protected(model)
    with all_or_nothing(model):
        for head in heads.values():
            if isinstance(head, ProtectedLinear | ProtectedConv2d):
                head.make_plain()
            else:
                head.protect(None)
    return model


def _named(model: nn.Module, heads: dict[str, Protectable], classifier: str | Sequence[str]) -> dict[str, Protectable]:
    """Return the protected plain layers at the given paths, or the only one in the container at a path."""
    chosen: dict[str, Protectable] = {}
    for path in layer_names(classifier):
        inside = {
            name: head
            for name, head in heads.items()
            if isinstance(head, ProtectedLinear | ProtectedConv2d) and f"{name}.".startswith(f"{path}.")
        }
        if len(inside) != 1:
            raise ModelError(
                f"classifier={classifier!r} must name a plain layer or one that is protected already, but "
                f"{type(model).__name__} has heads to protect ({', '.join(map(repr, heads))}); leave classifier= out."
            )
        chosen.update(inside)
    return chosen
