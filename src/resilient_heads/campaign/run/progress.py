"""Show the progress of a long run: as a bar, as lines of a log, through a function of the caller, or not at all."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

from resilient_heads.errors import ArgumentError
from resilient_heads.phases import Advance, Phase, phase, shown_by

Progress = bool | Callable[[int, int], object]
"""True shows phases on standard error, False shows nothing, and a function is called with ``(done, total)`` trials."""

_SECONDS = 30.0
"""Time between two lines of a log."""
_BRIEF = 2.0
"""Seconds that a phase takes at most without a line in a log."""


def check_progress(progress: Progress) -> None:
    """Raise ArgumentError unless ``progress`` is True, False or a function."""
    if not (isinstance(progress, bool) or callable(progress)):
        raise ArgumentError(f"progress must be True, False or a function of (done, total), found {progress!r}.")


def show_phases(progress: Progress) -> contextlib.AbstractContextManager[None]:
    """Show the phases of a block on standard error if ``progress`` is True: a bar, or lines if it is not a terminal."""
    if progress is not True or sys.stderr is None:
        return shown_by(None)
    return shown_by(_bar if sys.stderr.isatty() or _in_notebook() else _lines)


@contextlib.contextmanager
def show_progress(
    progress: Progress, *, total: int, unit: str, name: str = "injecting", done: int = 0
) -> Iterator[Advance]:
    """Yield a function that the run calls with the number of units that it has just finished.

    Args:
        progress: See :data:`Progress`.
        total: Units of the whole run.
        unit: What is counted, such as ``"trial"``.
        name: Name of the phase.
        done: Units that were finished before this run.

    >>> with show_progress(print, total=3, unit="trial") as advance:
    ...     advance(2)
    ...     advance(1)
    2 3
    3 3
    """
    with phase(name, total=total, unit=unit, done=done) as show:

        def advance(units: int) -> None:
            nonlocal done
            done += units
            show(units)
            if callable(progress):
                progress(done, total)

        yield advance


@contextlib.contextmanager
def _bar(shown: Phase) -> Iterator[Advance]:
    """Show a phase as a bar of a terminal or a notebook."""
    plain = "{desc} [{elapsed}]" if shown.total is None else None
    with tqdm(
        total=shown.total, initial=shown.done, unit=shown.unit, desc=shown.name, leave=False, bar_format=plain
    ) as bar:
        yield bar.update


@contextlib.contextmanager
def _lines(shown: Phase) -> Iterator[Advance]:
    """Show a phase in a log: a line if it is not over in a moment, and one every half minute."""
    started = latest = time.monotonic()
    done = shown.done
    before = f", {done:,} of them finished before" if done else ""
    head = shown.name if shown.total is None else f"{shown.name}: {shown.total:,} {shown.unit}s{before}"
    announcement = threading.Timer(_BRIEF, _write, [head])  # a phase that hangs reports nothing, and needs its name
    announcement.daemon = True

    def advance(units: int) -> None:
        nonlocal done, latest
        done += units
        now = time.monotonic()
        if now - latest >= _SECONDS:
            latest = now
            _write(_line(shown, done, now - started))

    announcement.start()
    try:
        yield advance
    finally:
        announcement.cancel()


def _line(shown: Phase, done: int, seconds: float) -> str:
    """Return a line of a log; ``seconds`` have passed since the phase began.

    >>> _line(Phase("injecting", 9216, "trial", 96), 1296, 24.0)
    'injecting: 1,296 of 9,216 trials (14 %), 50.0 trials/s, 0:02:38 left'
    """
    total, rate = shown.total or done, max(done - shown.done, 1) / seconds
    minutes, left = divmod(round((total - done) / rate), 60)
    finished = f"{done:,} of {total:,} {shown.unit}s ({100 * done / total:.0f} %)"
    return f"{shown.name}: {finished}, {rate:.1f} {shown.unit}s/s, {minutes // 60}:{minutes % 60:02}:{left:02} left"


def _write(line: str) -> None:
    """Write a line to standard error, in one piece."""
    if sys.stderr is not None:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def _in_notebook() -> bool:
    """Whether a notebook's kernel runs this code; its standard error shows bars, though it is not a terminal."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in shell.config
