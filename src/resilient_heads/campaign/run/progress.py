"""Show the progress of a long run: as a bar, through a function of the caller, or not at all."""

import contextlib
from collections.abc import Callable, Iterator

from tqdm import tqdm

from resilient_heads.errors import ArgumentError

Progress = bool | Callable[[int, int], object]
"""True shows a bar on standard error, False shows nothing, and a function is called with ``(done, total)``."""


def check_progress(progress: Progress) -> None:
    """Raise ArgumentError unless ``progress`` is True, False or a function."""
    if not (isinstance(progress, bool) or callable(progress)):
        raise ArgumentError(f"progress must be True, False or a function of (done, total), found {progress!r}.")


@contextlib.contextmanager
def show_progress(progress: Progress, *, total: int, unit: str, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Yield a function that the run calls with the number of units that it has just finished.

    Args:
        progress: See :data:`Progress`.
        total: Units of the whole run.
        unit: What the bar counts, such as ``"trial"``.
        done: Units that were finished before this run.

    >>> with show_progress(print, total=3, unit="trial") as advance:
    ...     advance(2)
    ...     advance(1)
    2 3
    3 3
    """
    with tqdm(total=total, initial=done, unit=unit, disable=progress is not True, desc="injecting", leave=False) as bar:

        def advance(units: int) -> None:
            nonlocal done
            done += units
            bar.update(units)
            if callable(progress):
                progress(done, total)

        yield advance
