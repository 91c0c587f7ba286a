"""Find the fault sites of a model by running it."""

import dataclasses
import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from resilient_heads.errors import FaultError
from resilient_heads.evaluation import evaluating, run_model
from resilient_heads.incremental.recording.batch_layout import (
    BatchLayout,
    layout_from_shapes,
    resolve_order,
    with_changed_image,
)
from resilient_heads.injection.sites.hooks import WatchProducts, open_attention, watch_outputs, watch_sites, weight_of
from resilient_heads.injection.sites.site import Site, SiteMap, Source

_SEARCH = "the search for fault sites"


def find_sites(model: nn.Module, example_input: Tensor, *, modules: Sequence[str | type[nn.Module]] = ()) -> SiteMap:
    """Find the tensors of a model that faults can be injected into.

    The fault sites are the outputs of Conv2d and Linear modules, the tensors that a module lists in its
    ``fault_sites`` (names of its submodules, ``""`` for itself), and the outputs of other modules on request. Where a
    model multiplies with the weight of a Linear or a MultiheadAttention and never runs the module, the product is the
    site. The model runs in evaluation mode and is left as it was.

    Args:
        model: Any module that takes one tensor.
        example_input: One or more inputs ``(N, ...)`` on the model's device. The model runs on two and three of them.
        modules: Further modules whose outputs become sites: names, patterns of names, or classes.

    Raises:
        FaultError: The model has no site, or parameters without a size; the input is empty; or ``modules`` names a
            module that the model does not have.
        ForwardError: The model cannot run on the inputs.

    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    >>> [(site.name, site.shape) for site in find_sites(model, torch.randn(1, 3, 8, 8)).reached]
    [('0', (4, 6, 6)), ('2', (2,))]
    """
    if not len(example_input):
        raise FaultError("example_input is empty; pass at least one input, of shape (N, ...).")
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise FaultError(
            f"{type(model).__name__} has lazy parameters without a size; run it once, or give its head in_features."
        )
    found = dict(_candidates(model, modules))
    candidates = {name: module for name, (module, _) in found.items()}
    runs = [_run(model, candidates, example_input[torch.arange(rows) % len(example_input)]) for rows in (2, 3)]
    reached: list[tuple[int, Site]] = []
    uninjectable: dict[str, str] = {}
    for name, module in candidates.items():
        calls = [[seen for seen in run if seen.name == name] for run in runs]
        reason = _why_none([len(seen) for seen in calls])
        if reason is not None:
            uninjectable[name] = reason
        for call, (two, three) in enumerate(zip(*calls, strict=False)) if reason is None else ():
            label = name if call == 0 else f"{name}@{call + 1}"
            place = _place(two.tensor, three.tensor)
            if isinstance(place, str):
                uninjectable[label] = place
                continue
            site = Site(
                module=name,
                call=call,
                kind=type(module).__name__,
                shape=place[1],
                dtype=two.tensor.dtype,
                group=found[name][1],
                is_layer=weight_of(module) is not None,
                source=two.source,
                dim=place[0].dim,
                fold=place[0].fold,
            )
            reached.append((runs[0].index(two), site))
    sites = _settle(
        model, candidates, example_input, [site for _, site in sorted(reached, key=lambda pair: pair[0])], uninjectable
    )
    if not sites:
        raise FaultError(
            f"{type(model).__name__} has no fault site: "
            + ("; ".join(f"{name}: {why}" for name, why in uninjectable.items()) or "it has no Conv2d and no Linear.")
        )
    return SiteMap(tuple(sites), uninjectable)


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """A tensor that a forward pass computed.

    Attributes:
        name: Name of the module.
        source: The module's output, or a product with its weight.
        tensor: A stand-in on the meta device; for a module that does not return a tensor, what it returned.
    """

    name: str
    source: Source
    tensor: Any


def _run(model: nn.Module, modules: dict[str, nn.Module], images: Tensor) -> list[_Seen]:
    """Run the model and return the tensors of all candidates; products count only for modules that never ran."""
    outputs, products = list[_Seen](), list[_Seen]()

    def note(name: str, source: Source, value: Any) -> None:
        seen = _Seen(name, source, value.to("meta") if isinstance(value, Tensor) else value)
        (outputs if source == "output" else products).append(seen)

    with evaluating(model), open_attention():
        with watch_outputs(modules, note):
            run_model(model, images, during=_SEARCH)
        ran = {seen.name for seen in outputs}
        unrun = {
            name: module
            for name, module in modules.items()
            if name not in ran or isinstance(module, nn.MultiheadAttention)
        }
        if not unrun:
            return outputs
        mixed = list[_Seen]()
        with (
            watch_outputs(modules, lambda *seen: mixed.append(_Seen(*seen))),
            WatchProducts(unrun, lambda *seen: mixed.append(_Seen(*seen))),
        ):
            run_model(model, images, during=_SEARCH)
    # The output of a module that runs is its site; the products inside it are no further sites.
    return [seen for seen in mixed if seen.source == "output" or seen.name in unrun]


def _settle(
    model: nn.Module,
    modules: dict[str, nn.Module],
    example_input: Tensor,
    sites: list[Site],
    uninjectable: dict[str, str],
) -> list[Site]:
    """Find in which order images are folded into the batch dimension, by changing one image of three."""
    folded = {site.name: site for site in sites if site.fold > 1}
    if not folded:
        return sites
    images = example_input[torch.arange(3) % len(example_input)].clone()
    contents = []
    for batch in (images, with_changed_image(images, 0), with_changed_image(images, 1)):
        seen: dict[str, Tensor] = {}
        with evaluating(model), watch_sites(model, list(folded.values()), seen.__setitem__):
            run_model(model, batch, during=_SEARCH)
        contents.append(seen)
    settled = []
    for site in sites:
        layout: BatchLayout | None = site.layout
        if site.name in folded:
            layout = resolve_order(site.layout, [seen[site.name] for seen in contents], (0, 1))
        if layout is None:
            uninjectable[site.name] = "which part of its output belongs to which image is unclear"
        else:
            settled.append(dataclasses.replace(site, interleaved=layout.interleaved))
    return settled


def _candidates(
    model: nn.Module, modules: Sequence[str | type[nn.Module]]
) -> Iterator[tuple[str, tuple[nn.Module, str | None]]]:
    """Yield the modules whose outputs may be sites, each with the module that lists it in its ``fault_sites``."""
    every = dict(model.named_modules())
    declared: dict[str, str] = {}
    for name, module in every.items():
        for child in getattr(module, "fault_sites", ()):
            if child and child not in dict(module.named_modules()):
                raise FaultError(f"{type(module).__name__}.fault_sites names {child!r}, which it does not have.")
            declared[".".join(part for part in (name, child) if part)] = name
    wanted: set[str] = set()
    for choice in modules:
        found = {
            name
            for name, module in every.items()
            if name and (fnmatch.fnmatchcase(name, choice) if isinstance(choice, str) else isinstance(module, choice))
        }
        if not found:
            raise FaultError(f"{type(model).__name__} has no module {choice!r}; its modules are: {', '.join(every)}.")
        wanted |= found
    for name, module in every.items():
        if name and (name in declared or name in wanted or weight_of(module) is not None):
            yield name, (module, declared.get(name))


def _why_none(calls: list[int]) -> str | None:
    """Return why a module has no site, or None."""
    if not any(calls):
        return "it never ran, and nothing multiplies with its weight"
    if len(set(calls)) > 1:
        return "how often it runs depends on the size of the batch"
    return None


def _place(two: Any, three: Any) -> tuple[BatchLayout, tuple[int, ...]] | str:
    """Return where images lie in a tensor, given the tensor for two and for three images, or why that is unknown."""
    if not isinstance(two, Tensor) or not isinstance(three, Tensor):
        return f"its output is a {type(two).__name__}, not a tensor"
    if not two.dtype.is_floating_point:
        return f"its output is {two.dtype}"
    try:
        rows = layout_from_shapes(tuple(three.shape), tuple(two.shape), 3, 2)
    except ValueError:
        rows = None
    if rows is None or two.ndim < 2:
        return "its output has no batch dimension"
    shape = list(two.shape)
    shape[rows.dim : rows.dim + 1] = [rows.fold] if rows.fold > 1 else []
    if not torch.Size(shape).numel():
        return "its output is empty"
    return rows, tuple(shape)
