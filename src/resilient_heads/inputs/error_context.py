"""Errors of other libraries in one line of ours."""

from collections.abc import Iterator
from contextlib import contextmanager

from resilient_heads.errors import ResilientHeadsError


@contextmanager
def explained(kind: type[ResilientHeadsError], what: str) -> Iterator[None]:
    """Turn whatever is raised inside the block into ``kind``: ``what``, then the first line of the reason.

    Args:
        kind: Error to raise.
        what: What went wrong, as a sentence without its end.
    """
    try:
        yield
    except ResilientHeadsError:
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        raise kind(f"{what}: {type(error).__name__}: {reason}") from error
