"""Read and replace the tensors of a running model: outputs of modules, and products with weights."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from resilient_heads.evaluation import undone
from resilient_heads.injection.sites.layers import weights_of
from resilient_heads.injection.sites.nested import find_tensor, with_tensor
from resilient_heads.injection.sites.site import Site, Source

Note = Callable[[str, Source, Any], Any]
"""Called with a module's name, the source of its tensor, and what it holds; returns a replacement, or None."""

_LOCK = threading.Lock()
_OPEN: set[object] = set()
_fast = True

_PRODUCTS = frozenset({"aten::addmm", "aten::mm", "aten::linear", "aten::convolution", "aten::bmm", "aten::baddbmm"})


@contextmanager
def open_attention() -> Iterator[None]:
    """Run attention as separate operations inside the block, since its fused operator hides the projections."""
    block = object()

    def close() -> None:
        with _LOCK:
            if {block} == _OPEN:
                torch.backends.mha.set_fastpath_enabled(_fast)
            _OPEN.discard(block)

    def open_() -> None:
        global _fast
        with _LOCK:  # The switch is global to the process, and several threads may be inside the block.
            if not _OPEN:
                _fast = torch.backends.mha.get_fastpath_enabled()
            _OPEN.add(block)
            torch.backends.mha.set_fastpath_enabled(False)

    with undone(close):
        open_()
        yield


@contextmanager
def watch_outputs(modules: Mapping[str, nn.Module], note: Note) -> Iterator[None]:
    """Call ``note`` for every output of some modules inside the block; a tensor that it returns replaces the output."""
    handles: list[RemovableHandle] = []

    def remove() -> None:
        for handle in handles:
            handle.remove()

    with undone(remove):
        for name, module in modules.items():

            def leave(_module: nn.Module, _inputs: object, output: Any, name: str = name) -> Any:
                return note(name, "output", output)

            handles.append(module.register_forward_hook(leave))
        yield


class WatchProducts(TorchDispatchMode):
    """Calls ``note`` for every product with the weights of some modules inside the block.

    Args:
        modules: Modules that the model never runs although it uses their weights.
        note: Called for each product; a tensor that it returns replaces the product.
    """

    supports_higher_order_operators = True

    def __init__(self, modules: Mapping[str, nn.Module], note: Note) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = {address(weight): name for name, module in modules.items() for weight in weights_of(module)}
        self._note = note

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and call ``note`` if it is such a product."""
        result = func(*args, **(kwargs or {}))
        name = product_with(func, args, self._names)
        if name is None:
            return result
        other = self._note(name, "product", result)
        return result if other is None else other


def product_with(func: Any, args: tuple[Any, ...], names: Mapping[int, str]) -> str | None:
    """Return the module whose weight an operation multiplies with, or None.

    Args:
        func: The operator.
        args: Its arguments.
        names: Address of a weight, see :func:`address`, to a module's name.
    """
    if not isinstance(func, torch._ops.OpOverload) or func._schema.name not in _PRODUCTS:
        return None
    found = (names.get(address(value)) for value in args if isinstance(value, Tensor))
    return next((name for name in found if name is not None), None)


def address(tensor: Tensor) -> int:
    """Return a number that identifies the memory of a tensor; views of one tensor share it."""
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
    return tensor.untyped_storage()._cdata if plain else -id(tensor)


@contextmanager
def watch_sites(model: nn.Module, sites: Sequence[Site], note: Callable[[str, Tensor], Any]) -> Iterator[None]:
    """Call ``note`` with the name and the tensor of some sites as the model computes them in one pass inside the block.

    What ``note`` returns, if it is a tensor, takes the tensor's place.
    """
    calls: dict[str, int] = {}
    every = dict(model.named_modules(remove_duplicate=False))
    wanted: dict[tuple[str, Source, int], list[Site]] = {}
    for site in sites:
        wanted.setdefault((site.module, site.source, site.call), []).append(site)

    def pick(name: str, source: Source, value: Any) -> Any:
        call = calls.get(name, 0)
        calls[name] = call + 1
        changed = None
        for site in wanted.get((name, source, call), ()):
            other = note(site.name, find_tensor(value, site.path, f"the output of {site.name!r}")[1])
            if isinstance(other, Tensor):
                changed = with_tensor(value if changed is None else changed, site.path, other)
        return changed

    outputs = {site.module: every[site.module] for site in sites if site.source == "output"}
    products = {site.module: every[site.module] for site in sites if site.source == "product"}
    with watch_outputs(outputs, pick), open_attention():
        if products:
            with WatchProducts(products, pick):
                yield
        else:
            yield
