"""Files: checked paths, atomic writes, locks and digests."""

import contextlib
import glob
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout


def as_path(given: str | os.PathLike[str], what: str, *, error: type[Exception]) -> Path:
    """Return a path that the system can write, or raise ``error``; the message names the path ``what``."""
    if not isinstance(given, str | os.PathLike):
        raise error(f'{what} must be a path, such as "folder/file", found {given!r:.60}.')
    path = Path(given)
    try:
        usable = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        usable = False
    if not usable:
        raise error(f"{what} must be a path that the system can write, found {str(path)!r:.120}.")
    return path


def write_atomic(path: str | os.PathLike[str], content: bytes | memoryview) -> Path:
    """Write a file whole or not at all: write it beside ``path``, then rename it to ``path``.

    The function makes missing parent folders. If the process is killed meanwhile, an unfinished file stays beside
    ``path``; :func:`leftovers` finds it.

    Returns:
        The path.

    Raises:
        OSError: The folder is not writable, or the disk is full. An older file at ``path`` is then unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(path.parent)
    return path


def leftovers(path: str | os.PathLike[str]) -> list[Path]:
    """Return the unfinished files that killed :func:`write_atomic` calls left; call it while no process writes."""
    path = Path(path)
    return sorted(entry for entry in path.parent.glob(f".{glob.escape(path.name)}.*") if entry.is_file())


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], *, wait: bool) -> Iterator[None]:
    """Keep other processes that lock the same path out of the block; the system unlocks when a process ends.

    The file ``path`` exists inside the block only.

    Args:
        path: A file that serves as the lock alone, in an existing folder.
        wait: Wait for the other process, instead of raising an error.

    Raises:
        BlockingIOError: Another process is inside its block, and ``wait`` is False.
        OSError: The file cannot be made.
    """
    lock = FileLock(path, timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout as error:
        raise BlockingIOError(f"Another process has locked {path}.") from error
    try:
        yield
    finally:
        # Removed before the release: a process that waited for this file notices, and locks a new one.
        with contextlib.suppress(OSError):
            os.unlink(path)
        lock.release()


def _sync_folder(folder: Path) -> None:
    """Make a rename permanent, so that it survives a loss of power; some systems cannot sync folders."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    """Return the process's umask; the system has no call that only reads it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the hex digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
