"""Say what a long run is doing: the run names its phases, and whoever started it may show them."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass

Advance = Callable[[int], object]
"""Called with the number of units that have just been finished."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a run.

    Attributes:
        name: What the run does, such as ``"golden run"``.
        total: Units of the whole phase; None if nothing is counted.
        unit: What is counted, such as ``"trial"``.
        done: Units that were finished before.
    """

    name: str
    total: int | None = None
    unit: str = ""
    done: int = 0


Display = Callable[[Phase], AbstractContextManager[Advance]]
"""Shows a phase while a block runs; a block inside of it may show another phase."""

_display: ContextVar[Display | None] = ContextVar("display", default=None)


@contextlib.contextmanager
def phase(name: str, *, total: int | None = None, unit: str = "", done: int = 0) -> Iterator[Advance]:
    """Show a phase while the block runs, if somebody shows phases; for the arguments see :class:`Phase`.

    >>> @contextlib.contextmanager
    ... def printed(phase: Phase) -> Iterator[Advance]:
    ...     yield lambda units: print(f"{phase.name}: {units} of {phase.total}")
    >>> with shown_by(printed), phase("golden run", total=12) as advance:
    ...     advance(4)
    golden run: 4 of 12
    """
    display = _display.get()
    if display is None:
        yield lambda units: None
    else:
        with display(Phase(name, total, unit, done)) as advance:
            yield advance


@contextlib.contextmanager
def shown_by(display: Display | None) -> Iterator[None]:
    """Show the phases of the block; None shows none of them."""
    token = _display.set(display)
    try:
        yield
    finally:
        _display.reset(token)
