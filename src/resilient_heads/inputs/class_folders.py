"""Find the picture files of each class in a folder, in the layout of torchvision's ImageFolder."""

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from resilient_heads.checks import printable
from resilient_heads.errors import DataError
from resilient_heads.inputs.pictures import EXTENSIONS

_NO_CLASSES = frozenset(
    ("__macosx", "__pycache__", "lost+found", "@eadir", "$recycle.bin", "system volume information")
)
"""Folders that operating systems and tools make, in lower case; hidden folders are left out by their first letter."""

_SPLITS = frozenset(("train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval", "holdout"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassFolders:
    """The pictures of a data set.

    Attributes:
        path: The data set's folder.
        files: The picture files of each class folder, by the folder's name; both sorted by name.
        left_out: How many files of the class folders are no pictures, by the ending of their names.
        repeated: How many links lead to a picture or folder of the same class that counts already.
    """

    path: Path
    files: dict[str, tuple[Path, ...]]
    left_out: dict[str, int]
    repeated: int

    @property
    def empty(self) -> list[str]:
        """Names of class folders without a picture."""
        return [name for name, files in self.files.items() if not files]


def find_class_folders(path: Path) -> ClassFolders:
    """List the class folders of a data set and their pictures, at any depth.

    Hidden files and folders, and folders that operating systems make, are left out. Links to files and folders are
    followed. A picture that several links (or names) of one class reach counts once.

    Raises:
        DataError: There is no class folder; the folders are splits such as ``train`` and ``val``; a link leads to
            nothing or to a folder that holds it; a picture belongs to two classes; a folder cannot be read.
    """
    names = sorted(entry.name for entry in _entries(path) if _is_class(entry))
    if not names:
        raise DataError(
            f"{printable(path)} has no subfolder; expected a folder with a subfolder of pictures for each class."
        )
    splits = [name for name in names if name.lower() in _SPLITS]
    if len(splits) in (len(names), 2, 3, 4):
        raise DataError(
            f"{printable(path)} holds splits of a data set ({_listed(splits)}), not classes; pass one of them, such as "
            f"{printable(path / splits[-1])}."
        )
    found = _Search()
    files = {name: tuple(sorted(found.pictures(path / name, name))) for name in names}
    if not any(files.values()):
        raise DataError(
            f"{printable(path)} has {len(names)} subfolders, but no picture in them; expected files that end in "
            f"{', '.join(sorted(EXTENSIONS))}."
        )
    return ClassFolders(path=path, files=files, left_out=found.left_out, repeated=found.repeated)


class _Search:
    """A walk over class folders that remembers which files it has seen."""

    def __init__(self) -> None:
        self.left_out: dict[str, int] = {}
        self.repeated = 0
        self._classes: dict[tuple[int, int], tuple[str, str]] = {}  # class and path of each file, by device and inode

    def pictures(self, folder: Path, name: str) -> Iterator[Path]:
        """Yield the pictures of one class folder."""
        pending = [(str(folder), frozenset([_identity(folder.parent)]))]
        visited = set()
        while pending:
            current, above = pending.pop(0)
            identity = _identity(current)
            if identity in above:
                raise DataError(
                    f"{printable(current)} is a link that leads to a folder in which it lies; remove the link."
                )
            self.repeated += identity in visited
            for entry in [] if identity in visited else _entries(current):
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    if entry.name.lower() not in _NO_CLASSES:
                        pending.append((entry.path, above | {identity}))
                elif os.path.splitext(entry.name)[1].lower() not in EXTENSIONS:
                    ending = os.path.splitext(entry.name)[1].lower() or "no ending"
                    self.left_out[ending] = self.left_out.get(ending, 0) + 1
                elif self._is_new(entry, identity[0], name):
                    yield Path(entry.path)
            visited.add(identity)

    def _is_new(self, entry: "os.DirEntry[str]", device: int, name: str) -> bool:
        """Note a picture; return whether it was not seen before in its class."""
        if not entry.is_file():
            raise DataError(f"{printable(entry.path)} is no file; expected a picture.")
        key = _identity(entry.path) if entry.is_symlink() else (device, entry.inode())
        other, path = self._classes.setdefault(key, (name, entry.path))
        if other != name:
            raise DataError(
                f"{printable(path)} and {printable(entry.path)} are one file in two classes; remove one of the links."
            )
        self.repeated += path != entry.path
        return path == entry.path


def _is_class(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry of the data set's folder is a class folder."""
    return not entry.name.startswith(".") and entry.name.lower() not in _NO_CLASSES and _is_folder(entry)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a folder or leads to one; raise DataError for a link that leads to nothing."""
    return stat.S_ISDIR(_status(entry.path).st_mode) if entry.is_symlink() else entry.is_dir()


def _entries(folder: str | Path) -> "Sequence[os.DirEntry[str]]":
    """Return the entries of a folder in the order of their names, so that equal folders are read equally."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{printable(folder)} cannot be read: {error.strerror}.") from error


def _identity(path: str | Path) -> tuple[int, int]:
    """Return what distinguishes a file or folder from every other one on this machine."""
    status = _status(path)
    return status.st_dev, status.st_ino


def _status(path: str | Path) -> os.stat_result:
    """Return the status of what a path leads to."""
    try:
        return os.stat(path)
    except OSError as error:
        reasons = {errno.ENOENT: "is a link that leads to nothing", errno.ELOOP: "is a link that leads in a circle"}
        reason = reasons.get(error.errno or 0, f"cannot be read: {error.strerror}")
        raise DataError(f"{printable(path)} {reason}; mend or remove it.") from error


def _listed(names: Sequence[str]) -> str:
    """Return names as a list in a sentence, cut where it is long."""
    return ", ".join(printable(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")
