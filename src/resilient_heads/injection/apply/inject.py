"""Put faults into a running model, and take them out again."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from torch import nn

from resilient_heads.errors import FaultError
from resilient_heads.injection.apply.activations import inject_activations
from resilient_heads.injection.apply.batch import Strike as Strike
from resilient_heads.injection.apply.batch import inject_batch as inject_batch
from resilient_heads.injection.apply.batch import inject_trials as inject_trials
from resilient_heads.injection.apply.stored import inject_stored
from resilient_heads.injection.apply.verification import InjectionReport
from resilient_heads.injection.faults.fault import AnyFault, BitFlip, Fault, WeightBitFlip, is_activation
from resilient_heads.injection.faults.ranges import clamp_to_range as clamp_to_range


@contextmanager
def inject(model: nn.Module, faults: AnyFault | Iterable[AnyFault]) -> Iterator[InjectionReport]:
    """Corrupt a model inside the block; outside of it every bit and hook is as before, also when the body raises.

    Args:
        model: The model; run it inside the block.
        faults: One fault or several, in outputs, inputs, parameters and buffers. Several in one tensor are applied one
            after another, in their order. A fault in an output or input strikes every time that its layer runs inside
            the block, one in a parameter or buffer once.

    Yields:
        A report that counts on: values struck, and those on which a fault was without effect.

    Raises:
        FaultError: An unknown layer, a neuron, weight or bit that does not exist.
        InjectionError: The block ended and a fault in an activation had never struck, a flip had no effect, or
            something was not written as it should be.
    """
    chosen = (faults,) if not isinstance(faults, Iterable) else tuple(faults)
    if not chosen:
        raise FaultError("No fault was given; expected at least one BitFlip or WeightBitFlip.")
    for fault in chosen:
        if not isinstance(fault, Fault | BitFlip | WeightBitFlip):
            raise FaultError(f"Expected a BitFlip or WeightBitFlip or Fault, found {type(fault).__name__}.")
    _refuse_repeats([fault for fault in chosen if not isinstance(fault, Fault)])
    pairs = [(fault if isinstance(fault, Fault) else fault.as_fault(), fault) for fault in chosen]
    report = InjectionReport()
    with ExitStack() as stack:
        stack.enter_context(inject_stored(model, [pair for pair in pairs if not is_activation(pair[0])], report))
        stack.enter_context(inject_activations(model, [pair for pair in pairs if is_activation(pair[0])], report))
        yield report


@contextmanager
def inject_weights(model: nn.Module, faults: Sequence[WeightBitFlip | Fault]) -> Iterator[InjectionReport]:
    """Corrupt weights inside the block; restore every bit on exit.

    Raises:
        FaultError: An unknown layer or parameter, an index or bit that does not exist, the same bit twice, or a fault
            that is not in a parameter or buffer.
        InjectionError: A flip had no effect on what the parameter holds.
    """
    for fault in faults:
        if not isinstance(fault, WeightBitFlip) and is_activation(fault):
            raise FaultError(f"{fault} is no fault in a parameter or buffer; use inject().")
    with inject(model, faults) as report:
        yield report


def _refuse_repeats(faults: Sequence[BitFlip | WeightBitFlip]) -> None:
    """Refuse the same flip twice: the two would cancel. A flip in every row repeats the one in a single row."""
    rows: dict[BitFlip | WeightBitFlip, set[int | None]] = {}
    for fault in faults:
        everywhere = replace(fault, batch_index=None) if isinstance(fault, BitFlip) else fault
        row = fault.batch_index if isinstance(fault, BitFlip) else None
        earlier = rows.setdefault(everywhere, set())
        if row in earlier or None in earlier or (row is None and earlier):
            raise FaultError(f"Two faults flip the same bit, which changes nothing; give it once: {fault}.")
        earlier.add(row)
