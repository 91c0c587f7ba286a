"""Write one fault into a tensor in memory."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from resilient_heads.injection.apply.verification import Ledger
from resilient_heads.injection.faults.fault import AnyFault, Fault
from resilient_heads.injection.formats.bits import stored_words
from resilient_heads.injection.random.streams import Indices

Undo = Callable[[], None]


def strike(
    target: Tensor,
    golden: Tensor,
    rows: Indices,
    numbers: Indices,
    *,
    fault: Fault,
    given: AnyFault,
    stream: str,
    what: str,
    ledger: Ledger,
) -> Undo:
    """Write a fault into some samples, in place.

    Args:
        target: ``(R, *shape)``, what is written to: values, or their words.
        golden: ``(R, *shape)``, the fault-free values, which formats and maxima look at; may share memory.
        rows: Rows of ``target`` that are struck.
        numbers: Of the samples in these rows.
        fault: What goes wrong.
        given: The fault as the caller gave it, for messages.
        stream: Name of the tensor, for draws.
        what: Name of the tensor, for errors.
        ledger: Takes note.

    Returns:
        A function that puts the values back.
    """
    shape, dtype = golden.shape[1:], golden.dtype
    draws = fault.draw(stream, numbers, shape, dtype, what)
    model = fault.model
    context = None
    if model.needs_context:
        context = model.context(golden[torch.from_numpy(rows)].reshape(len(rows), -1), draws)
    hit = draws.neurons >= 0
    index = unraveled(np.maximum(draws.neurons, 0), rows, shape, target.device)
    values = stored_words(target.detach())[index].view(dtype)
    after = model.corrupt(values, draws, context=context)
    chosen = torch.from_numpy(hit).to(target.device)
    place = tuple(one.expand(hit.shape)[chosen] for one in index)
    before, wanted = values[chosen], after[chosen]
    ledger.add(
        fault,
        given,
        _addresses(target, place),
        before,
        wanted,
        draws.flip[hit],
        lambda: stored_words(target.detach())[place].view(dtype),
    )
    write(target, place, wanted)
    return lambda: write(target, place, before)


def write(target: Tensor, place: tuple[Tensor, ...], values: Tensor) -> None:
    """Put values into a tensor, or into the words of one.

    As values, so that autograd sees the write; as words where the target holds words, and for floats of a byte, which
    not every device can index.
    """
    if target.dtype.itemsize == 1 or target.dtype != values.dtype:
        stored_words(target)[place] = stored_words(values)
    else:
        target[place] = values


def unraveled(flat: Indices, rows: Indices, shape: torch.Size, device: torch.device) -> tuple[Tensor, ...]:
    """Turn flat indices ``(N, K)`` within rows ``(N,)`` into one index a dimension, each broadcast to ``(N, K)``."""
    inner = np.unravel_index(flat, tuple(shape)) if shape else ()
    outer = np.broadcast_to(rows[:, None], flat.shape).copy()
    return tuple(torch.from_numpy(np.ascontiguousarray(one)).to(device) for one in (outer, *inner))


def _addresses(target: Tensor, place: tuple[Tensor, ...]) -> Indices:
    """Return where in memory the elements lie, in bytes."""
    steps = torch.stack([one * stride for one, stride in zip(place, target.stride(), strict=True)]).sum(dim=0)
    offset = steps.cpu().numpy().astype(np.int64) * target.element_size()
    address: Indices = offset + np.int64(target.data_ptr())
    return address
