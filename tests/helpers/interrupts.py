"""Interrupt a callable at the lines of the library that it runs, as Ctrl-C would, one line at a time.

>>> def undisturbed() -> None: ...
>>> interrupt_lines(undisturbed, undisturbed)
0
"""

import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

import resilient_heads

_FOLDER = os.path.dirname(os.path.abspath(resilient_heads.__file__)) + os.sep

Line = tuple[CodeType, int]


class Interrupt(KeyboardInterrupt):
    """The KeyboardInterrupt of this helper."""


def interrupt_lines(
    run: Callable[[], object],
    check: Callable[[], object],
    *,
    distinct: bool = False,
    stride: int = 1,
    seed: int = 0,
) -> int:
    """Run a callable once for each line of the library that it executes, and raise KeyboardInterrupt at that line.

    The first run is not interrupted: it counts the lines, and imports what the callable imports. Lines inside of a
    ``finally``, an ``__exit__`` or an ``except`` count like all others.

    Args:
        run: Does the work. It must end with the interrupt that it got.
        check: Called after each run; it raises if something is not as before.
        distinct: Interrupt each line of the source once, at one of the times that it is executed, drawn at random.
            False interrupts each execution of each line.
        stride: Interrupt one of so many of these; the first one is drawn at random.
        seed: Seed of the random choices.

    Returns:
        How many runs were interrupted.
    """
    lines: list[Line] = []
    with _tracing(lambda line: lines.append(line)):
        run()
    check()
    draw = random.Random(seed)
    chosen = _one_of_each(lines, draw) if distinct else list(range(len(lines)))
    interrupted = 0
    for number in chosen[draw.randrange(stride) :: stride]:
        place = _interrupt(run, number)
        try:
            check()
        except BaseException as error:
            error.add_note(f"after an interrupt at {place} (line {number} of {len(lines)})")
            raise
        interrupted += place is not None
    return interrupted


def _one_of_each(lines: list[Line], draw: random.Random) -> list[int]:
    """Return, for each different line, the number of one of its executions, in ascending order."""
    times: dict[Line, list[int]] = {}
    for number, line in enumerate(lines):
        times.setdefault(line, []).append(number)
    return sorted(draw.choice(numbers) for numbers in times.values())


def _interrupt(run: Callable[[], object], number: int) -> str | None:
    """Run a callable, raise at the line of a number, and return its place; None if fewer lines are executed."""
    left, place = number, None

    def count(line: Line) -> None:
        nonlocal left, place
        left -= 1
        if left == -1:
            place = f"{line[0].co_filename.removeprefix(_FOLDER)}:{line[1]} in {line[0].co_qualname}"
            raise Interrupt(place)

    lost: list[object] = []
    with _unraisable(lost), _tracing(count):
        try:
            run()
        except Interrupt:
            return place
    assert place is None or lost, f"the interrupt at {place} was swallowed"
    return place


@contextmanager
def _tracing(note: Callable[[Line], None]) -> Iterator[None]:
    """Call a function before each line of the library inside the block; what it raises is raised at that line."""

    def local(frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "line":
            note((frame.f_code, frame.f_lineno))
        return local

    def enter(frame: FrameType, _event: str, _argument: Any) -> Any:
        inside = frame.f_code.co_filename.startswith(_FOLDER) and frame.f_code.co_name != "<module>"
        return local if inside else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(before)


@contextmanager
def _unraisable(lost: list[object]) -> Iterator[None]:
    """Collect interrupts of generators that Python is closing: they have no caller to raise them to."""
    before = sys.unraisablehook

    def collect(args: Any) -> None:
        if isinstance(args.exc_value, Interrupt):
            lost.append(str(args.exc_value))
        else:
            before(args)

    sys.unraisablehook = collect
    try:
        yield
    finally:
        sys.unraisablehook = before
