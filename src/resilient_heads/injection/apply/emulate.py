"""Run a model as if its layers' outputs were held in another number format."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from resilient_heads.errors import FaultError, InjectionError
from resilient_heads.injection.apply.activations import plain_tensor
from resilient_heads.injection.formats.base import NumberFormat
from resilient_heads.injection.sites.nested import locate, replaced


@contextmanager
def emulate(model: nn.Module, form: NumberFormat, *, layers: str | Iterable[str] | None = None) -> Iterator[None]:
    """Round the outputs of layers to a number format inside the block.

    A fault passes only the values that it strikes through its format. Under this, all values of a layer do, struck or
    not, in golden runs too: enter it first, then inject, and a fault through the same format is exactly a fault in the
    word that the layer holds. This is how GoldenEye runs a network.

    Args:
        model: The model; run it inside the block.
        form: The number format. What values share (a block's exponent, a bias, a scale), each sample has for itself.
        layers: Name, pattern with ``*`` and ``?``, or several; None takes every Conv and Linear.

    Raises:
        FaultError: No layer is meant, or an output that is no floating tensor.
        InjectionError: No output was rounded, since none of the layers ran.

    Source: Mahmoud et al., *GoldenEye*, DSN 2022.
    """
    chosen = _chosen(model, layers)
    fired = False

    def hook(module: nn.Module, _inputs: object, output: object) -> object:
        nonlocal fired
        fired = True
        what = f"the output of {names[module]!r}"
        path, tensor = locate(output, None, what)
        return replaced(output, path, rounded(plain_tensor(tensor, what), form))

    names = {module: name for name, module in chosen.items()}
    handles = []
    try:
        for module in names:
            handles.append(module.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()
    if not fired:
        raise InjectionError("Nothing was emulated: none of the layers ran inside the block, or the model is compiled.")


def rounded(values: Tensor, form: NumberFormat) -> Tensor:
    """Return the values of a number format that are nearest to given ones.

    Args:
        values: ``(N, ...)``; each sample shares what the format shares.
        form: The number format.

    Returns:
        Same shape, dtype and memory format; gradients do not pass.
    """
    if not values.numel():
        return values
    rows = values.detach().reshape(len(values), -1).to(torch.float64)
    shared = None
    if form.shared_bits:
        count = rows.shape[1]
        group = form.group_of(torch.arange(count, device=rows.device), count)
        shared = form.fit(rows)[:, group]
    near = form.decode(form.encode(rows, shared), shared).to(values.dtype)
    result = torch.empty_like(values, memory_format=torch.preserve_format)
    return result.copy_(near.view(values.shape))


def _chosen(model: nn.Module, layers: str | Iterable[str] | None) -> dict[str, nn.Module]:
    """Return the layers that are meant."""
    modules = {name: module for name, module in model.named_modules() if name}
    found: dict[str, nn.Module] = {}
    if layers is None:
        kinds = nn.Linear | nn.modules.conv._ConvNd
        found = {name: module for name, module in modules.items() if isinstance(module, kinds)}
    else:
        patterns = (layers,) if isinstance(layers, str) else tuple(layers)
        for pattern in patterns:
            matching = {name: module for name, module in modules.items() if fnmatchcase(name, pattern)}
            if not matching:
                raise FaultError(f"No layer of {type(model).__name__} matches {pattern!r}.")
            found |= matching
    if not found:
        raise FaultError(f"{type(model).__name__} has no Conv and no Linear to emulate; pass layers=.")
    return found
