"""Fault sites: the tensors of a model that a flip can strike, found by running it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from resilient_heads.errors import FaultError
from resilient_heads.evaluation import evaluating
from resilient_heads.injection.formats import format_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """The output of one module.

    Attributes:
        name: Dotted name of the module; the model itself has none and cannot be a site.
        kind: Class of the module.
        shape: Output of one sample, without the batch dimension.
        dtype: Of the output.
        group: Name of the module that declared it among its ``fault_sites``, or None.
        is_layer: Whether the module is a Conv2d or a Linear, which is what published campaigns inject into.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    group: str | None
    is_layer: bool

    @property
    def neurons(self) -> int:
        """Values of one sample that a fault can strike."""
        return int(torch.Size(self.shape).numel())

    @property
    def bits(self) -> int:
        """Bits of each value."""
        return format_of(self.dtype).bits


@dataclass(frozen=True, slots=True)
class SiteMap:
    """The sites that a forward pass reached, and those that it did not.

    Attributes:
        reached: Sites in the order of execution.
        skipped: Name of a module that would be a site, and why no fault can be put there.
    """

    reached: tuple[Site, ...]
    skipped: dict[str, str]

    def named(self, name: str) -> Site:
        """Return one site.

        Raises:
            FaultError: There is none of that name; the message lists the valid ones.
        """
        for site in self.reached:
            if site.name == name:
                return site
        if name in self.skipped:
            raise FaultError(f"No fault can be put into {name!r}: {self.skipped[name]}.")
        names = ", ".join(site.name for site in self.reached)
        raise FaultError(f"No fault site is named {name!r}; the model's sites are: {names}.")

    @property
    def last(self) -> tuple[Site, ...]:
        """The sites of the classifier: the group of the site that ran last, or that site alone."""
        final = self.reached[-1]
        if final.group is None:
            return (final,)
        return tuple(site for site in self.reached if site.group == final.group)


def find_sites(model: nn.Module, sample: Tensor) -> SiteMap:
    """List the outputs of Conv2d and Linear modules, and the tensors that a module declares as its ``fault_sites``.

    The model runs in evaluation mode and is left as it was. A module declares its tensors by an attribute
    ``fault_sites``: names of its submodules, ``""`` for itself.

    Args:
        model: Any module that takes one tensor.
        sample: One or more inputs ``(N, ...)`` on the model's device; the model is run on two and three of them.

    Raises:
        FaultError: No site was reached, no input was given, or the model has parameters without a size.
    """
    if not len(sample):
        raise FaultError("The sample holds no input; pass at least one.")
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise FaultError(
            f"{type(model).__name__} has lazy parameters without a size; run it once, or give its head in_features."
        )
    candidates = dict(_candidates(model))
    calls: dict[str, list[list[object]]] = {name: [] for name in candidates}
    order: dict[str, int] = {}
    for rows in (2, 3):
        outputs: dict[str, list[object]] = {name: [] for name in candidates}
        with _recording(candidates, outputs, order), evaluating(model):
            model(sample[torch.arange(rows) % len(sample)])
        for name, seen in outputs.items():
            calls[name].append(seen)
    reached, skipped = [], {}
    for name, (module, group) in candidates.items():
        reason = _why_not(calls[name])
        if reason is not None:
            skipped[name] = reason
            continue
        output = calls[name][0][0]
        assert isinstance(output, Tensor)
        reached.append(
            Site(
                name=name,
                kind=type(module).__name__,
                shape=tuple(output.shape[1:]),
                dtype=output.dtype,
                group=group,
                is_layer=isinstance(module, nn.Conv2d | nn.Linear),
            )
        )
    if not reached:
        raise FaultError(
            f"{type(model).__name__} has no fault site: "
            + ("; ".join(f"{name}: {why}" for name, why in skipped.items()) or "it has no Conv2d and no Linear.")
        )
    return SiteMap(tuple(sorted(reached, key=lambda site: order[site.name])), skipped)


def _candidates(model: nn.Module) -> Iterator[tuple[str, tuple[nn.Module, str | None]]]:
    """Yield the modules whose outputs would be sites, with the group that declared them."""
    declared: dict[str, str] = {}
    for name, module in model.named_modules():
        for child in getattr(module, "fault_sites", ()):
            if child and child not in dict(module.named_modules()):
                raise FaultError(f"{type(module).__name__}.fault_sites names {child!r}, which it does not have.")
            declared[".".join(part for part in (name, child) if part)] = name
    for name, module in model.named_modules():
        if name and (name in declared or isinstance(module, nn.Conv2d | nn.Linear)):
            yield name, (module, declared.get(name))


@contextmanager
def _recording(
    candidates: dict[str, tuple[nn.Module, str | None]],
    outputs: dict[str, list[object]],
    order: dict[str, int],
) -> Iterator[None]:
    """Note each module's outputs, and the order in which the modules finished."""
    handles = []
    for name, (module, _) in candidates.items():

        def note(_module: nn.Module, _inputs: object, output: object, name: str = name) -> None:
            order.setdefault(name, len(order))
            # Only shape and dtype are wanted: a stand-in without memory lets the activation go.
            outputs[name].append(output.to("meta") if isinstance(output, Tensor) else output)

        handles.append(module.register_forward_hook(note))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _why_not(runs: list[list[object]]) -> str | None:
    """Say why a module's output is no site, or return None."""
    most = max(len(seen) for seen in runs)
    if not most:
        return "it never ran (its weights may be used functionally)"
    if most > 1:
        return f"it runs {most} times in a forward pass"
    if not all(runs):
        return "it runs for batches of some sizes only"
    for rows, seen in zip((2, 3), runs, strict=True):
        output = seen[0]
        if not isinstance(output, Tensor):
            return f"its output is a {type(output).__name__}, not a tensor"
        if output.ndim < 2 or output.shape[0] != rows:
            return "its output has no batch dimension"
        if not output.dtype.is_floating_point:
            return f"its output is {output.dtype}"
        if output.shape[1:].numel() == 0:
            return "its output is empty"
    return None
