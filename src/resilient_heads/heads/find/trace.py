"""Find which layers give a model's output: one forward pass of a copy without weights, on the meta device.

The pass computes no value, and the model itself does not run. Each Linear and 1x1 convolution returns a new leaf of
autograd's graph. Walking back from the output then ends at the layers whose result reaches the output without passing
another such layer.
"""

import copy
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from resilient_heads.errors import ModelError
from resilient_heads.evaluation import reason_of
from resilient_heads.heads.find.candidates import is_leaf, out_features

logger = logging.getLogger(__name__)

_IMAGE_SIZES = (224, 32, 28, 64, 299, 256, 384, 16, 8)


@dataclass(frozen=True)
class Trace:
    """What a forward pass showed.

    Attributes:
        ran: Paths of the Linear and 1x1 Conv2d layers that ran.
        direct: Layers whose result reaches the output without passing another such layer, with their number of
            outputs; None if the output has no graph (``no_grad``, ``argmax``).
        last: The layers of ``direct`` after which the model uses no parameter, as after a plain classifier.
        shapes: Shapes of the output's tensors, in order.
        sources: For each of these tensors, the layers of ``direct`` that reach it.
        inputs: Shape of the input.
    """

    ran: frozenset[str]
    direct: dict[str, int] | None
    last: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    sources: tuple[frozenset[str], ...]
    inputs: tuple[int, ...]


def trace(model: nn.Module, example_input: Tensor | None = None, *, required: bool = False) -> Trace | None:
    """Run a copy of the model without weights, and return which layers give the output.

    Args:
        model: The model; neither run nor changed.
        example_input: A batch that the model accepts. Only its shape and dtype are used. None tries the shapes that
            the model's configuration and its first layer suggest.
        required: Raise an error instead of returning None.

    Returns:
        The trace, or None if the model accepts no such input on the meta device.

    Raises:
        ModelError: The model accepts no such input, with ``required``.
    """
    twin: nn.Module | None = None
    reason: Exception | None = None
    # A caller's inference mode would make the batches unusable for autograd.
    with torch.inference_mode(False), torch.enable_grad():
        given = [] if example_input is None else [torch.empty_like(example_input, device="meta")]
        for batch in given or _guesses(model):
            try:
                twin = _copy_without_weights(model) if twin is None else twin
                return _run(twin, batch)
            except Exception as error:  # no copy, a shape that the model refuses, an operation without a meta kernel
                logger.debug("%s does not accept %s on meta: %s", type(model).__name__, tuple(batch.shape), error)
                reason = error
                if twin is None:
                    break
    if required and example_input is not None:
        raise ModelError(
            f"{type(model).__name__} does not accept a batch of shape {tuple(example_input.shape)} on the meta device; "
            f"pass an example_input that it accepts, or name the classifier without it. Reason: {reason_of(reason)}"
        ) from reason
    return None


def shapes_after(
    model: nn.Module, old: int, new: int, example_input: Tensor | None = None
) -> tuple[tuple[int, ...], ...] | None:
    """Return the output shapes that a model must have after its number of classes changed from ``old`` to ``new``.

    Returns:
        One shape per output; None if the number stays, or if the model cannot be traced.
    """
    seen = trace(model, example_input) if old != new else None
    if seen is None:
        return None
    batch = seen.inputs[0]
    return tuple(
        tuple(new if size == old and (at > 0 or size != batch) else size for at, size in enumerate(shape))
        for shape in seen.shapes
    )


def _copy_without_weights(model: nn.Module) -> nn.Module:
    """Return a deep copy in evaluation mode with its tensors on the meta device; no weight is copied."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
            if isinstance(tensor, Tensor) and id(tensor) not in memo:
                empty = torch.empty_like(tensor, device="meta", requires_grad=False)
                floating = tensor.is_floating_point()
                memo[id(tensor)] = nn.Parameter(empty, floating) if isinstance(tensor, nn.Parameter) else empty
    twin = copy.deepcopy(model, memo)
    for module in twin.modules():
        # A user's hooks must not see this pass; torch's hooks, such as weight_norm's, are part of the computation.
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                if not type(hook).__module__.startswith("torch.nn."):
                    del hooks[key]
    return twin.eval()


def _run(twin: nn.Module, batch: Tensor) -> Trace:
    """Run the copy once."""
    leaves = {name: module for name, module in twin.named_modules() if is_leaf(module)}
    names: dict[nn.Module, str] = {module: name for name, module in leaves.items()}
    fresh: dict[int, str] = {}
    kept: list[Tensor] = []
    ran: set[str] = set()

    def cut(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        ran.add(names[module])
        start = torch.empty_like(output, requires_grad=True)
        fresh[id(start)] = names[module]
        kept.append(start)
        return start.clone()  # later layers may work in place, which a leaf of the graph forbids

    handles = [module.register_forward_hook(cut) for module in names]
    try:
        output = twin(batch)
    finally:
        for handle in handles:
            handle.remove()
    tensors = list(_tensors(output))
    ids = [_sources(tensor) for tensor in tensors]
    sources = tuple(frozenset(fresh[key] for key in found if key in fresh) for found in ids)
    pure = {
        fresh[key]
        for found in ids
        if all(key in fresh for key in found)  # otherwise the model uses a parameter after the last layer
        for key in found
    }
    direct = {name: out_features(leaves[name]) for name in sorted(frozenset().union(*sources))}
    return Trace(
        ran=frozenset(ran),
        direct=direct if any(tensor.grad_fn is not None for tensor in tensors) else None,
        last=tuple(name for name in leaves if name in pure),
        shapes=tuple(tuple(tensor.shape) for tensor in tensors),
        sources=sources,
        inputs=tuple(batch.shape),
    )


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yield the tensors of an output: a tensor, nested containers, or an object that behaves like a mapping."""
    if hasattr(output, "items") and callable(output.items):
        output = [value for _, value in output.items()]
    yield from (leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))


def _sources(tensor: Tensor) -> set[int]:
    """Return the ids of the leaves of autograd's graph behind a tensor."""
    found: set[int] = set()
    seen: set[Any] = set()
    stack: list[Any] = [tensor.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            found.add(id(variable))
        stack.extend(following for following, _ in node.next_functions)
    return found


def _guesses(model: nn.Module) -> Iterator[Tensor]:
    """Yield batches of two that the model may accept, the likeliest first."""
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    dtype = torch.float32 if parameter is None else parameter.dtype
    kinds = nn.Embedding | nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
    first = next((m for m in model.modules() if isinstance(m, kinds)), None)
    if isinstance(first, nn.Embedding):
        yield torch.empty((2, 8), dtype=torch.int64, device="meta")
    channels = first.in_channels if isinstance(first, nn.Conv2d) else 3
    shapes = [size if len(size) > 2 else (channels, *size) for size in _recorded_sizes(model)]
    if isinstance(first, nn.Conv1d):
        shapes += [(first.in_channels, 64), (16000,)]  # (16000,): a second of sound
    elif isinstance(first, nn.Conv3d):
        shapes += [(first.in_channels, 16, side, side) for side in (112, 224)]
    else:
        if isinstance(first, nn.Linear):
            shapes.append((first.in_features,))
        shapes += [(channels, side, side) for side in _IMAGE_SIZES]
    for shape in dict.fromkeys(shapes):
        yield torch.empty((2, *shape), dtype=dtype, device="meta")


def _recorded_sizes(model: nn.Module) -> Iterator[tuple[int, ...]]:
    """Yield the image sizes in a model's attributes and configuration."""
    config = getattr(model, "config", None)
    timm = getattr(model, "pretrained_cfg", None)
    channels = getattr(config, "num_channels", None)
    named: Iterable[Any] = (
        getattr(config, "image_size", None),
        getattr(getattr(model, "patch_embed", None), "img_size", None),
        timm.get("input_size") if isinstance(timm, dict) else None,
        getattr(model, "image_size", None),
        getattr(config, "input_size", None),
        getattr(config, "img_size", None),
    )
    for size in named:
        if type(size) is int:
            size = (size, size)
        if isinstance(size, tuple | list) and len(size) in (2, 3) and all(type(n) is int and n > 0 for n in size):
            yield (channels, *size) if type(channels) is int and len(size) == 2 else tuple(size)
