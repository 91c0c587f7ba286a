"""Errors of other libraries, in one line of this library's."""

from collections.abc import Iterator
from contextlib import contextmanager

from resilient_heads.checks import printable
from resilient_heads.errors import ResilientHeadsError
from resilient_heads.redaction import redact, without_secrets


@contextmanager
def error_context(error: type[ResilientHeadsError], what: str) -> Iterator[None]:
    """Raise ``error`` for every exception of the block that is not of this library.

    Args:
        error: Class of the error.
        what: What went wrong, as a sentence without its full stop. The message adds the class of the exception and the
            first line of its message.
    """
    try:
        yield
    except ResilientHeadsError:
        raise
    except Exception as cause:
        reason = printable(redact(next(iter(str(cause).strip().splitlines()), "")))
        if "weights_only" in reason:  # libraries advise to switch the protection off
            reason = "the file is a pickle that holds more than weights; it could run code, so it is not read"
        raise error(f"{what}: {type(cause).__name__}: {reason}") from without_secrets(cause)
