"""Inject faults into a running model, and remove them again."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from torch import nn

from resilient_heads.errors import FaultError
from resilient_heads.evaluation import in_use
from resilient_heads.injection.apply.activations import inject_activations
from resilient_heads.injection.apply.stored import inject_stored
from resilient_heads.injection.apply.verification import InjectionReport
from resilient_heads.injection.faults.fault import AnyFault, BitFlip, Fault, WeightBitFlip, is_activation
from resilient_heads.wrappers import require_module


@contextmanager
def inject(model: nn.Module, faults: AnyFault | Iterable[AnyFault]) -> Iterator[InjectionReport]:
    """Inject faults into a model inside the block; at its end, every bit and hook is as before.

    The model is restored when the body raises, too. A fault in an output or input is injected each time that its layer
    runs inside the block; a fault in a parameter or buffer is injected once. A forward pass that activation
    checkpointing computes again meets the same faults and counts once.

    Args:
        model: The model. Run it inside the block.
        faults: One fault or several: in outputs, inputs, parameters and buffers. Several faults in one tensor are
            applied in their order.

    Yields:
        A report that counts the injected values, and the values on which a fault had no effect.

    Raises:
        ArgumentError: The model is no module.
        FaultError: An unknown layer, or a neuron, weight or bit that does not exist.
        InjectionError: A fault did not take effect exactly as asked; the block ended before its layer ran; the block
            overwrote a weight with a fault, or removed a hook; or another thread uses the model.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Identity())
    >>> with inject(model, BitFlip(layer="0", neuron=(1,), bit=31)) as report:
    ...     print(model(torch.tensor([[1.0, 2.0]])), report.injected)
    tensor([[ 1., -2.]]) 1
    """
    require_module(model)
    chosen = tuple(faults) if isinstance(faults, Iterable) else (faults,)
    if not chosen:
        raise FaultError("No fault was given; expected at least one Fault, BitFlip or WeightBitFlip.")
    for fault in chosen:
        if not isinstance(fault, Fault | BitFlip | WeightBitFlip):
            raise FaultError(f"Expected a Fault, BitFlip or WeightBitFlip, found {type(fault).__name__}.")
    _refuse_repeats([fault for fault in chosen if not isinstance(fault, Fault)])
    pairs = [(fault if isinstance(fault, Fault) else fault.as_fault(), fault) for fault in chosen]
    report = InjectionReport()
    stored, passing = [pair for pair in pairs if not is_activation(pair[0])], [p for p in pairs if is_activation(p[0])]
    with (
        in_use(model, "an inject block"),
        inject_stored(model, stored, report),
        inject_activations(model, passing, report),
    ):
        yield report


def _refuse_repeats(faults: Sequence[BitFlip | WeightBitFlip]) -> None:
    """Raise FaultError if two faults flip the same bit, since they would cancel each other.

    A flip in every row of a batch also flips the bit in each single row.
    """
    rows: dict[BitFlip | WeightBitFlip, set[int | None]] = {}
    for fault in faults:
        in_every_row = replace(fault, batch_index=None) if isinstance(fault, BitFlip) else fault
        row = fault.batch_index if isinstance(fault, BitFlip) else None
        earlier = rows.setdefault(in_every_row, set())
        if row in earlier or None in earlier or (row is None and earlier):
            raise FaultError(f"Two faults flip the same bit, which changes nothing; give this one once: {fault}.")
        earlier.add(row)
