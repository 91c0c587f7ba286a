"""Find the fault sites of a model by running it."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.rnn import PackedSequence

from resilient_heads.errors import FaultError, ForwardError
from resilient_heads.evaluation import evaluating, run_model
from resilient_heads.incremental.recording.batch_layout import (
    BatchLayout,
    layout_from_shapes,
    resolve_order,
    with_changed_image,
)
from resilient_heads.incremental.recording.tape import kind_of
from resilient_heads.injection.faults.targets import Key, names_matching
from resilient_heads.injection.sites.batches import first_images, run_accepted
from resilient_heads.injection.sites.counting import coverage_of
from resilient_heads.injection.sites.hooks import WatchProducts, open_attention, watch_outputs, watch_sites
from resilient_heads.injection.sites.layers import is_layer
from resilient_heads.injection.sites.nested import members, tensors_in
from resilient_heads.injection.sites.site import Site, SiteMap, Source
from resilient_heads.wrappers import refuse_opaque

_SEARCH = "the search for fault sites"


def find_sites(model: nn.Module, example_input: Tensor, *, modules: Sequence[str | type[nn.Module]] = ()) -> SiteMap:
    """Find the tensors of a model that faults can be injected into.

    The fault sites are the outputs of layers (convolutions, linear, bilinear and recurrent layers, embeddings), the
    tensors that a module lists in its ``fault_sites`` (names of its submodules, ``""`` for itself), and the outputs of
    other modules on request. Each tensor of an output is a site of its own, if the model reads it. Where a model
    multiplies with the weight of a layer or a MultiheadAttention and never runs the module, the product is the site.
    The result's ``coverage`` says how much of the model's computation the sites hold. The model runs in evaluation mode
    and is left as it was.

    Args:
        model: Any module that takes one tensor.
        example_input: One or more inputs ``(N, ...)`` on the model's device. The model runs on two and three of them.
            If it refuses these, it runs on all N and on more; if it refuses more, on N alone.
        modules: Further modules whose outputs become sites: names, patterns of names, or classes. The name of a module
            means that module, also if it holds ``*`` or ``[``.

    Raises:
        FaultError: The model has no site, or parameters without a size; the input is empty; or ``modules`` names a
            module that the model does not have.
        ModelError: The model is compiled, TorchScript or an exported program as a whole.
        ForwardError: The model cannot run on the inputs.

    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    >>> [(site.name, site.shape) for site in find_sites(model, torch.randn(1, 3, 8, 8)).reached]
    [('0', (4, 6, 6)), ('2', (2,))]
    """
    refuse_opaque(model)
    if not len(example_input):
        raise FaultError("example_input is empty; pass at least one input, of shape (N, ...).")
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise FaultError(
            f"{type(model).__name__} has lazy parameters without a size; run it once, or give its head in_features."
        )
    _check_names(model)
    found = dict(_candidates(model, modules))
    candidates = {name: module for name, (module, _) in found.items() if not isinstance(module, torch.jit.ScriptModule)}
    uninjectable = dict.fromkeys(found.keys() - candidates.keys(), "it is TorchScript, which runs past hooks")
    runs, sizes = run_accepted(partial(_run, model, candidates), example_input)
    reached: list[tuple[int, Site]] = []
    for name, module in candidates.items():
        calls = [[seen for seen in run if seen.name == name] for run in runs]
        reason = _why_none([len(seen) for seen in calls])
        if reason is not None:
            uninjectable[name] = reason
        for call, seen in enumerate(zip(*calls, strict=False)) if reason is None else ():
            for path, label, place in _places(seen, sizes, name if call == 0 else f"{name}@{call + 1}"):
                if isinstance(place, str):
                    uninjectable[label] = place
                    continue
                site = Site(
                    module=name,
                    call=call,
                    kind=type(module).__name__,
                    shape=place.shape,
                    dtype=place.dtype,
                    group=found[name][1],
                    is_layer=is_layer(module),
                    source=seen[0].source,
                    dim=place.layout.dim,
                    fold=place.layout.fold,
                    path=path,
                    label="" if not path else label,
                )
                reached.append((runs[0].index(seen[0]), site))
    sites = _with_unique_names(model, [site for _, site in sorted(reached, key=lambda pair: pair[0])])
    sites = _settle(model, first_images(example_input, sizes[-1]), sites, uninjectable, all_unsure=len(sizes) == 1)
    few = first_images(example_input, sizes[0])
    sites = _without_unread(model, few, sites, uninjectable)
    if not sites:
        raise FaultError(
            f"{type(model).__name__} has no fault site: "
            + (
                "; ".join(f"{name}: {why}" for name, why in uninjectable.items())
                or "it has no layer. Name other modules in modules=."
            )
        )
    return SiteMap(tuple(sites), uninjectable, coverage_of(model, few, sites))


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """A tensor that a forward pass computed.

    Attributes:
        name: Name of the module.
        source: The module's output, or a product with its weight.
        kind: Class of what the module returned.
        tensors: Stand-ins on the meta device for the plain tensors in it, and the other ones, by their paths.
    """

    name: str
    source: Source
    kind: str
    tensors: dict[tuple[Key, ...], Tensor]


@dataclass(frozen=True, slots=True)
class _Place:
    """A tensor that a fault can be injected into.

    Attributes:
        layout: Where images lie in it.
        shape: Shape of one image's part.
        dtype: Its dtype.
    """

    layout: BatchLayout
    shape: tuple[int, ...]
    dtype: torch.dtype


def _run(model: nn.Module, modules: dict[str, nn.Module], images: Tensor) -> list[_Seen]:
    """Run the model and return the tensors of all candidates; products count only for modules that never ran."""
    seen = list[_Seen]()

    def note(name: str, source: Source, value: Any) -> None:
        tensors = {path: tensor.to("meta") if kind_of(tensor) is None else tensor for path, tensor in _separable(value)}
        seen.append(_Seen(name, source, type(value).__name__, tensors))

    # An attention returns what its last projection gives, which is a site of its own.
    running = {name: module for name, module in modules.items() if not isinstance(module, nn.MultiheadAttention)}
    with evaluating(model), open_attention():
        with watch_outputs(running, note):
            run_model(model, images, during=_SEARCH)
        ran = {one.name for one in seen}
        idle = {name: module for name, module in modules.items() if name not in ran}
        if idle:
            seen.clear()
            with watch_outputs(running, note), WatchProducts(idle, note):
                run_model(model, images, during=_SEARCH)
    return seen


def _settle(
    model: nn.Module, images: Tensor, sites: list[Site], uninjectable: dict[str, str], *, all_unsure: bool
) -> list[Site]:
    """Find in which order images are folded into the batch dimension, by changing one image of the batch.

    With ``all_unsure``, also check that the batch dimension is the first one: shapes of one batch do not show it.
    """
    folded = {site.name: site for site in sites if site.fold > 1 or all_unsure}
    if not folded or len(images) == 1:
        return sites
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


def _without_unread(model: nn.Module, images: Tensor, sites: list[Site], uninjectable: dict[str, str]) -> list[Site]:
    """Drop the tensors that the model never reads, of modules that return several: every fault there is masked."""
    read = []
    for site in sites:
        if site.path and not _is_read(model, site, images):
            uninjectable[site.name] = "the model does not read this tensor of several that the module returns"
        else:
            read.append(site)
    return read


def _is_read(model: nn.Module, site: Site, images: Tensor) -> bool:
    """Return whether the model's result changes if a tensor becomes NaN."""
    with evaluating(model):
        first = run_model(model, images, during=_SEARCH)
        try:
            with watch_sites(model, [site], lambda _, tensor: torch.full_like(tensor, torch.nan)):
                second = run_model(model, images, during=_SEARCH)
        except ForwardError:  # NaN led the model astray
            return True
    before, after = ([tensor for _, tensor in tensors_in(result)] for result in (first, second))
    return len(before) != len(after) or not all(map(torch.equal, before, after))


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
        if isinstance(choice, str):
            found = set(names_matching(choice, filter(None, every)))
        else:
            found = {name for name, module in every.items() if name and isinstance(module, choice)}
        if not found:
            raise FaultError(
                f"{type(model).__name__} has no module {choice!r}; its modules are: {', '.join(filter(None, every))}."
            )
        wanted |= found
    for name, module in every.items():
        if name and (name in declared or name in wanted or is_layer(module)):
            yield name, (module, declared.get(name))


def _why_none(calls: list[int]) -> str | None:
    """Return why a module has no site, or None."""
    if not any(calls):
        return "it never ran, and nothing multiplies with its weight"
    if len(set(calls)) > 1:
        return "how often it runs depends on the size of the batch"
    return None


def _check_names(model: nn.Module) -> None:
    """Raise FaultError if a module's name is no text, or is the name of another one too."""
    names = [name for name, _ in model.named_modules()]
    for name in names:
        if not name.isascii() and name.encode(errors="replace").decode() != name:
            raise FaultError(f"The name {name!r} of a module is no valid Unicode text; give the module another name.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise FaultError(f"Two modules of {type(model).__name__} are named {twice!r}; give one of them another name.")


def _with_unique_names(model: nn.Module, sites: list[Site]) -> list[Site]:
    """Give every site a name of its own, also where a module is named as another one's second run would be."""
    taken = {name for name, _ in model.named_modules()}
    named = []
    for site in sites:
        label = site.name
        if site.name != site.module:
            while label in taken:
                label += "~"
            taken.add(label)
        named.append(site if label == site.name else dataclasses.replace(site, label=label))
    return named


def _places(
    seen: Sequence[_Seen], sizes: Sequence[int], name: str
) -> Iterator[tuple[tuple[Key, ...], str, _Place | str]]:
    """Yield each tensor of an output: its path, its name, and its place or the reason why it is no site."""
    tensors = seen[0].tensors
    floating = [path for path, tensor in tensors.items() if tensor.dtype.is_floating_point] or list(tensors)
    if not floating:
        yield (), name, f"its output is a {seen[0].kind}, not a tensor"
    for path in floating:
        label = name if path == floating[0] else name + "".join(f"[{key!r}]" for key in path)
        found = [one.tensors[path] for one in seen if path in one.tensors]
        yield path, label, _place(found, sizes) if len(found) == len(seen) else "its output depends on the batch"


def _separable(value: Any, path: tuple[Key, ...] = ()) -> Iterator[tuple[tuple[Key, ...], Tensor]]:
    """Yield the tensors of an output; not those of packed sequences, whose rows depend on the lengths of the inputs."""
    if isinstance(value, Tensor):
        yield path, value
    elif not isinstance(value, PackedSequence):
        for key, inner in members(value):
            yield from _separable(inner, (*path, key))


def _place(tensors: Sequence[Tensor], sizes: Sequence[int]) -> _Place | str:
    """Return where images lie in a tensor, given the tensor for each size of the batch, or why that is unknown."""
    tensor = tensors[0]
    if kind_of(tensor) is not None:
        return f"its output is a {kind_of(tensor)}, which is no plain torch.Tensor"
    if not tensor.dtype.is_floating_point:
        return f"its output is {tensor.dtype}"
    rows = _rows([tuple(one.shape) for one in tensors], sizes)
    if rows is None or tensor.ndim < 2:
        return "its output has no batch dimension"
    shape = list(tensor.shape)
    shape[rows.dim : rows.dim + 1] = [rows.fold] if rows.fold > 1 else []
    if not torch.Size(shape).numel():
        return "its output is empty"
    return _Place(rows, tuple(shape), tensor.dtype)


def _rows(shapes: Sequence[tuple[int, ...]], sizes: Sequence[int]) -> BatchLayout | None:
    """Return where images lie, from a tensor's shapes; from a single shape, take the first dimension."""
    if len(sizes) == 1:
        fold, rest = divmod(shapes[0][0], sizes[0]) if shapes[0] else (0, 0)
        return BatchLayout(0, fold) if fold and not rest else None
    try:
        return layout_from_shapes(shapes[1], shapes[0], sizes[1], sizes[0])
    except ValueError:
        return None
