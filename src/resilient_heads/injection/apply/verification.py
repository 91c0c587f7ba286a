"""What faults wrote, and the proof that it is there: nothing is injected silently into nothing."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from resilient_heads.errors import InjectionError
from resilient_heads.injection.faults.effects import Flip
from resilient_heads.injection.faults.fault import AnyFault, Fault
from resilient_heads.injection.formats.bits import stored_words
from resilient_heads.injection.formats.dtypes import word_of

Words = NDArray[np.uint64]


@dataclass(slots=True)
class InjectionReport:
    """What an injection did so far; it counts on while the block runs.

    Attributes:
        struck: Values that a fault was written to.
        without_effect: How many of them had the faulty value already, as a bit that is stuck where it was, or a zero
            that becomes zero, or a zero whose block's exponent changes. The flip of a value's own bit is never among
            them: one without effect raises.
    """

    struck: int = 0
    without_effect: int = 0


@dataclass(slots=True)
class _Entry:
    """One fault's strikes on S values."""

    fault: AnyFault
    places: NDArray[np.int64]
    before: Words
    after: Words
    flips: Words | None
    must_change: bool
    read: Callable[[], Tensor]


@dataclass(slots=True)
class Ledger:
    """The strikes of several faults, in their order, on memory that may be shared."""

    entries: list[_Entry] = field(default_factory=list)

    def add(
        self,
        fault: Fault,
        given: AnyFault,
        places: NDArray[np.int64],
        before: Tensor,
        after: Tensor,
        flip: NDArray[np.int64],
        read: Callable[[], Tensor],
    ) -> None:
        """Note what a fault writes.

        Args:
            fault: The fault.
            given: As the caller gave it, for messages.
            places: ``(S,)``, addresses; equal ones mean the same value.
            before: ``(S,)``, the values that were there.
            after: ``(S,)``, the values that should be there now.
            flip: ``(S,)``, masks of the flipped bits.
            read: Reads the values at these places again.
        """
        flips = isinstance(fault.effect, Flip)
        masks = flip.view(np.uint64) if flips and fault.format is None else None
        must_change = flips and not fault.shared  # a zero stays a zero under any exponent
        self.entries.append(_Entry(given, places, _words(before), _words(after), masks, must_change, read))

    def check(self, report: InjectionReport) -> int:
        """Read everything back, count, and return how many values differ from what was there before all faults.

        Raises:
            InjectionError: A value is not what was written, or a flip is not there in the end.
        """
        if not self.entries:
            return 0
        places = np.concatenate([entry.places for entry in self.entries])
        _, first, inverse = np.unique(places, return_index=True, return_inverse=True)
        golden = np.concatenate([entry.before for entry in self.entries])[first]
        final = np.zeros_like(golden)
        final[inverse] = np.concatenate([entry.after for entry in self.entries])  # the last fault of a value wins
        flipped, only_flips = np.zeros_like(golden), np.ones(len(golden), dtype=bool)
        start = 0
        for entry in self.entries:
            entry_at = inverse[start : start + len(entry.places)]
            start += len(entry.places)
            if entry.flips is None:
                only_flips[entry_at] = False
            else:
                np.bitwise_xor.at(flipped, entry_at, entry.flips)
        start, found = 0, np.zeros_like(golden)
        for entry in self.entries:
            at = inverse[start : start + len(entry.places)]
            start += len(entry.places)
            now = _words(entry.read())
            found[at] = now
            change = now ^ golden[at]
            wrong = (now != final[at]) | (only_flips[at] & (change != flipped[at]))
            if entry.flips is not None:
                wrong |= (change & entry.flips) != entry.flips
            if entry.must_change:
                wrong |= change == 0
            if wrong.any():
                raise InjectionError(
                    f"{entry.fault} did not change its bits and no others: another fault undoes it, the number format "
                    "is finer than the tensor's, or the fault did not take effect; nothing would have been measured."
                )
            report.struck += len(at)
            report.without_effect += int((entry.before == entry.after).sum())
        return int((found != golden).sum())


def _words(values: Tensor) -> Words:
    """Return the words of a tensor as unsigned numbers."""
    width = word_of(values.dtype)[1]
    held = stored_words(values.detach().contiguous()).cpu().numpy().astype(np.int64).view(np.uint64)
    low: Words = held & np.uint64((1 << width) - 1)
    return low
