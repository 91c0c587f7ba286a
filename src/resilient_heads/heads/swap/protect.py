"""Give a model's heads a protection, and take it away."""

from collections.abc import Sequence
from typing import TypeVar

from torch import nn

from resilient_heads.errors import ModelError
from resilient_heads.heads.find.locate import find_classifiers, layer_names
from resilient_heads.heads.protection.layers import (
    Protectable,
    ProtectedConv2d,
    ProtectedLinear,
    find_protectable,
    protected,
)
from resilient_heads.heads.protection.options import Protection
from resilient_heads.heads.wrappers import refuse_held

M = TypeVar("M", bound=nn.Module)


def protect_(
    model: M,
    *,
    bounds: bool = False,
    checksum: bool = False,
    median: bool = False,
    classifier: str | Sequence[str] | None = None,
) -> M:
    """Protect a model's heads against faults, in place; of several heads, every one.

    Parameters, state dict and fault-free logits keep their bits. Protection acts in evaluation mode. A protection that
    a head has already is replaced. A plain layer stays the object it was, with its hooks and attributes. See
    :class:`Protection` for what each one does, and ``docs/protection.md`` for what each leaves.

    Args:
        model: A wrapped or fused model; a plain classifier; or a head.
        bounds: Hold every value against a bound that no fault-free value can exceed.
        checksum: Check the sums of all results, and compute anew where one is wrong.
        median: Compute three times and take the median; not with ``checksum``.
        classifier: Dotted path of a plain layer, or of several, where the model has no text-guided head; the layers may
            be protected already.

    Returns:
        The same model.

    Raises:
        ModelError: No protection or a contradictory one; a layer that cannot be protected or does not exist; a model
            that is compiled.
    """
    protection = Protection(bounds=bounds, checksum=checksum, median=median)
    if not isinstance(model, nn.Module):
        raise ModelError(f"Expected a torch.nn.Module, found {type(model).__name__}.")
    refuse_held(model, "protect")
    if type(model) in (nn.Linear, nn.Conv2d):
        raise ModelError(
            f"This is the {type(model).__name__} layer itself; pass the model that holds it, or a TextGuidedHead."
        )
    heads = find_protectable(model)
    if heads and classifier is not None:
        heads = _named(model, heads, classifier)
    for head in heads.values():
        head.protect(protection)
    if not heads:
        for place in find_classifiers(model, classifier, action="protect"):
            protected(place.leaf, protection)
    return model


def unprotect_(model: M) -> M:
    """Take the protection from every head of a model, in place.

    Returns:
        The same model.

    Raises:
        ModelError: No head is protected.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"Expected a torch.nn.Module, found {type(model).__name__}.")
    refuse_held(model, "unprotect")
    heads = {name: head for name, head in find_protectable(model).items() if head.protection is not None}
    if not heads:
        raise ModelError(f"{type(model).__name__} has no protected head; call protect_(model, ...) first.")
    for head in heads.values():
        if isinstance(head, ProtectedLinear | ProtectedConv2d):
            head.make_plain()
        else:
            head.protect(None)
    return model


def _named(model: nn.Module, heads: dict[str, Protectable], classifier: str | Sequence[str]) -> dict[str, Protectable]:
    """Return the protected layers that a user's paths mean: themselves, or the only one in a container."""
    found: dict[str, Protectable] = {}
    for wanted in layer_names(classifier):
        inside = {
            name: head
            for name, head in heads.items()
            if isinstance(head, ProtectedLinear | ProtectedConv2d) and f"{name}.".startswith(f"{wanted}.")
        }
        if len(inside) != 1:
            raise ModelError(
                f"classifier={classifier!r} must name a plain layer or one that is protected already, but "
                f"{type(model).__name__} has heads to protect ({', '.join(map(repr, heads))}); leave classifier= out."
            )
        found.update(inside)
    return found
