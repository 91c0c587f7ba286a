"""Files that vouch for themselves: each holds the sha256 of all its bytes, and stays a plain file of its format.

The digest is that of the file with 64 zeros in the digest's place. Everybody can check it without this library.
"""

import hashlib
import re
from pathlib import Path

from resilient_heads.errors import ResultError

BLANK = "0" * 64
"""Stands in a file's content where :func:`seal` writes the digest."""

_DIGEST = re.compile(rb"[0-9a-f]{64}")


def seal(content: bytes | memoryview, mark: bytes) -> memoryview:
    """Return the content with its digest in the place of :data:`BLANK`.

    Args:
        content: A whole file, with :data:`BLANK` after the last ``mark``.
        mark: The bytes in front of the digest.
    """
    sealed = bytearray(content)
    place = _place(content, mark)
    assert place is not None
    assert bytes(sealed[place]) == BLANK.encode()
    sealed[place] = _sha256(content, place).encode()
    return memoryview(sealed).toreadonly()


def is_intact(content: bytes, mark: bytes) -> bool:
    """Whether content is what :func:`seal` returned, to the last bit."""
    place = _place(content, mark)
    return place is not None and content[place] == _sha256(content, place).encode()


def _place(content: bytes | memoryview, mark: bytes) -> slice | None:
    """Return where the digest stands; None if there is none."""
    start = bytes(content).rfind(mark) + len(mark)
    found = start >= len(mark) and _DIGEST.fullmatch(content, start, start + len(BLANK))
    return slice(start, start + len(BLANK)) if found else None


def _sha256(content: bytes | memoryview, place: slice) -> str:
    """Return the digest of the content with zeros in the digest's place."""
    view = memoryview(content)
    digest = hashlib.sha256(view[: place.start])
    digest.update(BLANK.encode())
    digest.update(view[place.stop :])
    return digest.hexdigest()


def read_file(path: Path) -> bytes:
    """Return a file's content.

    Raises:
        FileNotFoundError: There is nothing at ``path``.
        ResultError: It is not a file, or the file cannot be read.
    """
    if path.exists() and not path.is_file():
        kind = "folder" if path.is_dir() else "device"
        raise ResultError(f"{path} is a {kind}; expected a file. Move it away and run the campaign's command again.")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ResultError(f"{path} cannot be read: {error.strerror or error}. Correct that and try again.") from error
