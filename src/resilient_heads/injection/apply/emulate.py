"""Run a model as if its layers' outputs were stored in another number format."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from resilient_heads.checks import instance_of
from resilient_heads.errors import ArgumentError, FaultError, InjectionError
from resilient_heads.evaluation import in_use
from resilient_heads.injection.apply.activations import require_plain
from resilient_heads.injection.apply.hooks import Hook, hooked
from resilient_heads.injection.faults.targets import names_matching
from resilient_heads.injection.formats.base import NumberFormat
from resilient_heads.injection.sites.nested import find_tensor, with_tensor


@contextmanager
def emulate(
    model: nn.Module, number_format: NumberFormat, *, layers: str | Iterable[str] | None = None
) -> Iterator[None]:
    """Round the outputs of layers to a number format inside the block.

    A fault with a ``format`` rounds only the values that it changes. ``emulate`` rounds all values, in golden runs too,
    as GoldenEye does. Enter ``emulate`` first and ``inject`` second: a fault in the same format then changes exactly
    the word that the layer holds.

    Args:
        model: The model. Run it inside the block.
        number_format: The number format. Values of different images share no word (block exponent, bias or scale).
        layers: A name, a pattern with ``*`` and ``?``, or several of them; None takes every Conv and Linear.

    Raises:
        ArgumentError: The model is no module, or the format is no number format.
        FaultError: No layer matches, or an output is no floating tensor.
        InjectionError: The block ended and no output was rounded, since none of the layers ran.

    Source: Mahmoud et al., *GoldenEye*, DSN 2022.

    >>> import torch
    >>> from resilient_heads.injection.formats.integer import FixedPoint
    >>> model = torch.nn.Sequential(torch.nn.Identity())
    >>> with emulate(model, FixedPoint(integer_bits=2, fraction_bits=1), layers="0"):
    ...     model(torch.tensor([[0.2, 0.3, 9.0]]))
    tensor([[0.0000, 0.5000, 3.5000]])
    """
    instance_of("model", model, nn.Module)
    if not isinstance(number_format, NumberFormat):
        raise ArgumentError(f"number_format must be one of resilient_heads.formats, found {number_format!r}.")
    names = {module: name for name, module in _matching_layers(model, layers).items()}
    rounded_any = False

    def round_output(module: nn.Module, _inputs: object, output: object) -> object:
        nonlocal rounded_any
        rounded_any = True
        what = f"the output of {names[module]!r}"
        path, tensor = find_tensor(output, None, what)
        return with_tensor(output, path, rounded(require_plain(tensor, what), number_format))

    with in_use(model, "an emulate block"), hooked(model, [(module, "output", Hook(round_output)) for module in names]):
        yield
    if not rounded_any:
        raise InjectionError(
            "No output was rounded: none of the layers ran inside the block. Perhaps the block does not run the model, "
            "or the model was compiled before the block."
        )


def rounded(values: Tensor, number_format: NumberFormat) -> Tensor:
    """Return the values of a number format that are nearest to given values.

    Args:
        values: ``(N, ...)``; values of one image share the format's shared words.
        number_format: The number format.

    Returns:
        A tensor of the same shape, dtype and memory format, without gradients.
    """
    if not values.numel():
        return values
    rows = values.detach().reshape(len(values), -1).to(torch.float64)
    shared = None
    if number_format.shared_bits:
        count = rows.shape[1]
        group = number_format.group_of(torch.arange(count, device=rows.device), count)
        shared = number_format.fit(rows)[:, group]
    nearest = number_format.decode(number_format.encode(rows, shared), shared).to(values.dtype)
    result = torch.empty_like(values, memory_format=torch.preserve_format)
    return result.copy_(nearest.view(values.shape))


def _matching_layers(model: nn.Module, layers: str | Iterable[str] | None) -> dict[str, nn.Module]:
    """Return the layers that the patterns match, by name."""
    modules = {name: module for name, module in model.named_modules() if name}
    if layers is None:
        kinds = nn.Linear | nn.modules.conv._ConvNd
        chosen: dict[str, nn.Module] = {name: one for name, one in modules.items() if isinstance(one, kinds)}
        if not chosen:
            raise FaultError(f"{type(model).__name__} has no Conv and no Linear; name its layers with layers=.")
        return chosen
    chosen = {}
    for pattern in (layers,) if isinstance(layers, str) else tuple(layers):
        matching = {name: modules[name] for name in names_matching(pattern, modules)}
        if not matching:
            raise FaultError(f"No layer of {type(model).__name__} matches {pattern!r}.")
        chosen |= matching
    if not chosen:
        raise FaultError("layers is empty; pass at least one name or pattern, or None for every Conv and Linear.")
    return chosen
