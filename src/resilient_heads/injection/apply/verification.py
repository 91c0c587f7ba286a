"""Check that faults have the effect that they are asked for, and count it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from resilient_heads.errors import InjectionError
from resilient_heads.incremental.recording.words import words
from resilient_heads.injection.apply.core import Write
from resilient_heads.injection.faults.draws import Draws
from resilient_heads.injection.faults.effects import Flip
from resilient_heads.injection.faults.fault import AnyFault, Fault
from resilient_heads.injection.formats.dtypes import word_bits_of

Words = NDArray[np.uint64]


@dataclass(slots=True)
class InjectionReport:
    """What an injection has done so far; its numbers grow while the block runs.

    Attributes:
        injected: Number of values that faults were written to.
        without_effect: How many of them held the faulty value already: a bit that is stuck at its own value, a zero
            that becomes zero, a zero in a block whose exponent changes. A flip of a value's own bit always has an
            effect, or raises.
    """

    injected: int = 0
    without_effect: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class WrittenFault:
    """A fault and what it wrote into one tensor.

    Attributes:
        fault: The fault.
        given: The fault as the caller gave it, for errors.
        draws: Its draws.
        write: What the injection core wrote.
    """

    fault: Fault
    given: AnyFault
    draws: Draws
    write: Write

    @property
    def flips(self) -> Words | None:
        """``(S,)``, masks of the flipped bits; None for a fault that does not flip bits of the tensor's own words."""
        if not isinstance(self.fault.effect, Flip) or self.fault.format is not None:
            return None
        return self.draws.flip[self.draws.neurons >= 0].view(np.uint64)

    @property
    def must_change(self) -> bool:
        """Whether every value has to change. A zero stays zero for every exponent of its block."""
        return isinstance(self.fault.effect, Flip) and not self.fault.shared


def require_effect(faults: Sequence[WrittenFault], report: InjectionReport) -> None:
    """Check that every flip lasts when all faults have been written, and count the injected values.

    Raises:
        InjectionError: A later fault undoes a flip, or a flip changed nothing.
    """
    if not faults:
        return
    before = [_words(one.write.replaced) for one in faults]
    after = [_words(one.write.written) for one in faults]
    addresses = np.concatenate([one.write.addresses for one in faults])
    _, first, which = np.unique(addresses, return_index=True, return_inverse=True)
    parts = np.split(which, np.cumsum([len(part) for part in before])[:-1])
    golden = np.concatenate(before)[first]
    final = np.zeros_like(golden)
    final[which] = np.concatenate(after)  # The last fault in an element decides.
    change = final ^ golden
    drawn, only_flips = np.zeros_like(golden), np.ones(len(golden), dtype=bool)
    for one, part in zip(faults, parts, strict=True):
        if one.flips is None:
            only_flips[part] = False
        else:
            np.bitwise_xor.at(drawn, part, one.flips)
    for one, part in zip(faults, parts, strict=True):
        wrong = only_flips[part] & (change[part] != drawn[part])
        if one.flips is not None:
            wrong |= (change[part] & one.flips) != one.flips
        if one.must_change:
            wrong |= change[part] == 0
        if wrong.any():
            raise InjectionError(
                f"{one.given} did not change its bits and no others: another fault undoes it, or the number format is "
                "finer than the tensor's. Remove one of the faults, or choose a coarser format."
            )
    report.injected += sum(len(part) for part in parts)
    report.without_effect += sum(int((x == y).sum()) for x, y in zip(before, after, strict=True))


def _words(values: Tensor) -> Words:
    """Return the words of ``(S,)`` values as unsigned numbers."""
    held = words(values).cpu().numpy().astype(np.int64).view(np.uint64)
    low: Words = held & np.uint64((1 << word_bits_of(values.dtype)) - 1)
    return low
