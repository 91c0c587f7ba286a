"""Which layers give a model's output: one forward pass of a twin without weights, on the meta device.

No value is computed and the model itself is not run. Each Linear and 1x1 convolution hands on a fresh leaf of
autograd's graph, so the leaves found by walking back from the output are the layers whose result reaches it through no
other such layer.
"""

import copy
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from resilient_heads.heads.find.candidates import Leaf, is_leaf, width

logger = logging.getLogger(__name__)

_IMAGE_SIZES = (224, 32, 28, 64, 299, 256, 384, 16, 8)


@dataclass(frozen=True)
class Trace:
    """What a pass showed.

    Attributes:
        ran: Paths of the Linear and 1x1 Conv2d layers that were called.
        direct: Those whose result reaches the output through no other of them, with their widths; None where the
            output's graph is cut (``no_grad``, ``argmax``).
        last: Those of ``direct`` after which no parameter is used at all: the shape of a plain classifier.
        shapes: Shapes of the output's tensors, in order.
        inputs: The shape that went in.
    """

    ran: frozenset[str]
    direct: dict[str, int] | None
    last: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    inputs: tuple[int, ...]


def trace(model: nn.Module, sample: Tensor | None = None) -> Trace | None:
    """Follow one batch of two through a twin of the model that has no weights.

    Args:
        model: The model; neither run nor changed.
        sample: A batch as the model takes it, of which only shape and dtype are used; None tries what the model's
            configuration and its first layer suggest.

    Returns:
        What was seen, or None where no such input passes on the meta device.
    """
    try:
        with torch.inference_mode(False):
            twin = _twin(model)
    except Exception as error:  # what cannot be copied cannot be followed; the caller goes on without
        logger.debug("No weightless copy of %s: %s", type(model).__name__, error)
        return None
    for batch in [sample.to("meta")] if sample is not None else _guesses(model):
        try:
            with torch.inference_mode(False), torch.enable_grad():
                return _follow(twin, batch)
        except Exception as error:  # a shape that the model does not take, or an operation without meta kernel
            logger.debug("%s does not take %s on meta: %s", type(model).__name__, tuple(batch.shape), error)
    return None


def shapes_after(
    model: nn.Module, old: int, new: int, sample: Tensor | None = None
) -> tuple[tuple[int, ...], ...] | None:
    """Return the output shapes that another number of classes must give.

    Args:
        model: The model, with its classifiers as they are.
        old: Classes now.
        new: Classes then.
        sample: As for :func:`trace`.

    Returns:
        One shape for each output; None where the number stays, or nothing is known.
    """
    seen = trace(model, sample) if old != new else None
    if seen is None:
        return None
    batch = seen.inputs[0]
    return tuple(
        tuple(new if size == old and (at > 0 or size != batch) else size for at, size in enumerate(shape))
        for shape in seen.shapes
    )


def _twin(model: nn.Module) -> nn.Module:
    """Return a deep copy in evaluation mode whose tensors are on the meta device; weights are never copied."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        own = (*module._parameters.values(), *module._buffers.values(), *vars(module).values())
        for tensor in own:
            if isinstance(tensor, Tensor) and id(tensor) not in memo:
                empty = torch.empty_like(tensor, device="meta", requires_grad=False)
                floating = tensor.is_floating_point()
                memo[id(tensor)] = nn.Parameter(empty, floating) if isinstance(tensor, nn.Parameter) else empty
    twin = copy.deepcopy(model, memo)
    for module in twin.modules():
        # A user's hooks must not see this pass; torch's own (weight_norm's) are part of the computation.
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                if not type(hook).__module__.startswith("torch.nn."):
                    del hooks[key]
    return twin.eval()


def _follow(twin: nn.Module, batch: Tensor) -> Trace:
    """Run the twin once."""
    names = {module: name for name, module in twin.named_modules() if is_leaf(module)}
    fresh: dict[int, str] = {}
    kept: list[Tensor] = []
    ran: set[str] = set()

    def cut(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        ran.add(names[module])
        start = torch.empty_like(output, requires_grad=True)
        fresh[id(start)] = names[module]
        kept.append(start)
        return start.clone()  # what follows may work in place, which a graph's leaf forbids

    handles = [module.register_forward_hook(cut) for module in names]
    try:
        output = twin(batch)
    finally:
        for handle in handles:
            handle.remove()
    tensors = list(_tensors(output))
    ends = [tensor for tensor in tensors if tensor.grad_fn is not None]
    sources = [_sources(tensor) for tensor in ends]
    reached = {name for found in sources for key, name in fresh.items() if key in found}
    pure = {
        fresh[key]
        for found in sources
        if all(key in fresh for key in found)  # else a parameter is used after the last leaf
        for key in found
    }
    widths = {name: width(_leaf(twin, name)) for name in sorted(reached)}
    return Trace(
        ran=frozenset(ran),
        direct=widths if ends else None,
        last=tuple(name for name in names.values() if name in pure),
        shapes=tuple(tuple(tensor.shape) for tensor in tensors),
        inputs=tuple(batch.shape),
    )


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yield the tensors of an output: a tensor, nested containers, or an object that behaves as a mapping."""
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


def _leaf(model: nn.Module, name: str) -> Leaf:
    """Return the leaf of a name."""
    leaf = model.get_submodule(name)
    assert isinstance(leaf, nn.Linear | nn.Conv2d)
    return leaf


def _guesses(model: nn.Module) -> Iterator[Tensor]:
    """Yield batches of two that the model could take, the likeliest first."""
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    dtype = torch.float32 if parameter is None else parameter.dtype
    shapes: dict[tuple[int, ...], None] = {}
    first = next((m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)), None)
    channels = first.in_channels if isinstance(first, nn.Conv2d) else 3
    for size in _recorded_sizes(model):
        shapes[(2, *size) if len(size) > 2 else (2, channels, *size)] = None
    if isinstance(first, nn.Linear):
        shapes[2, first.in_features] = None
    elif isinstance(first, nn.Conv1d):
        shapes[2, first.in_channels, 64] = None
    elif isinstance(first, nn.Conv3d):
        shapes[2, first.in_channels, 16, 112, 112] = None
    if not isinstance(first, nn.Conv1d | nn.Conv3d):
        for side in _IMAGE_SIZES:
            shapes[2, channels, side, side] = None
    for shape in shapes:
        yield torch.empty(shape, dtype=dtype, device="meta")


def _recorded_sizes(model: nn.Module) -> Iterator[tuple[int, ...]]:
    """Yield the image sizes that a model's attributes and configuration name."""
    config = getattr(model, "config", None)
    timm = getattr(model, "pretrained_cfg", None)
    patches = getattr(model, "patch_embed", None)
    channels = getattr(config, "num_channels", None)
    named: Iterable[Any] = (
        getattr(config, "image_size", None),
        getattr(patches, "img_size", None),
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
