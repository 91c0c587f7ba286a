"""Files: checked paths, atomic writes, locks and digests."""

import contextlib
import errno
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
    make_folder(path.parent)
    with _explained(path, folder=False):
        if path.exists() and not path.is_file():  # renaming a file to a device would remove the device
            raise FileExistsError(errno.EEXIST, "it is no file")
        _write(path, content)
    _sync_folder(path.parent)
    return path


def _write(path: Path, content: bytes | memoryview) -> None:
    """Write a file beside ``path``, then rename it."""
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


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder, and those above it, unless it exists.

    Raises:
        OSError: The folder cannot be made; the message says why, and what to do.
    """
    path = Path(path)
    with _explained(path, folder=True):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def _explained(path: Path, *, folder: bool) -> Iterator[None]:
    """Raise each OSError of the block again; say what is in the way of writing to a path, and what to do."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "make room" if full else "pass another path"
        raise OSError(error.errno, f"{_obstacle(path, error, folder)}; {advice}", str(path)) from error


_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk is full",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "this user may not write there",
    errno.EPERM: "this user may not write there",
    errno.ELOOP: "a symbolic link in the path leads in a circle",
    errno.ENAMETOOLONG: "a name in the path is too long",
}


def _obstacle(path: Path, error: OSError, folder: bool) -> str:
    """Return what is in the way of making a folder or a file."""
    reason = error.strerror or str(error)
    if error.errno in _REASONS:
        return f"{_REASONS[error.errno]} ({reason})"
    for place in (*reversed(path.parents), path):
        if os.path.islink(place) and not os.path.exists(place):
            return f"{place} is a symbolic link that leads to nothing, or in a circle"
        if os.path.exists(place) and not os.path.isdir(place) and (folder or place != path):
            return f"{place} is no folder"
    if os.path.isdir(path) and not folder:
        return f"{path} is a folder, and a file is expected"
    is_device = os.path.exists(path) and not os.path.isdir(path) and not os.path.isfile(path)
    return "it is a device or a pipe, and a file is expected" if is_device else reason


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
