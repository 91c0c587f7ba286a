"""Let a process that is asked to end finish what it holds first."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class _Terminated(BaseException):
    """The process was asked to end."""


@contextlib.contextmanager
def unwound_before_termination() -> Iterator[None]:
    """Leave the block, as Ctrl-C does, before SIGTERM or SIGHUP ends the process; a second signal does not hurry it.

    Afterwards the process ends by the same signal, so that whoever sent it sees what it expects. Signals that the
    process handles or ignores are left alone, and so are all signals outside of the main thread.
    """
    received: list[int] = []

    def leave(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1:
            raise _Terminated

    main = threading.current_thread() is threading.main_thread()
    handled = [number for number in _SIGNALS if main and signal.getsignal(number) is signal.SIG_DFL]
    try:
        for number in handled:
            signal.signal(number, leave)
        yield
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)
        if received:
            os.kill(os.getpid(), received[0])
