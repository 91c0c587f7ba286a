"""Writing to a path where that is impossible: what is in the way, and what to do."""

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from resilient_heads.cli import main
from resilient_heads.files import leftovers, make_folder, write_atomic


def loop(folder: Path) -> Path:
    (folder / "loop").symlink_to("loop")
    return folder / "loop" / "x"


def dangling(folder: Path) -> Path:
    (folder / "link").symlink_to("absent/also")
    return folder / "link" / "x"


def below_a_file(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file" / "below" / "x"


IMPOSSIBLE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a link loop": (loop, "symbolic link .* in a circle.*; pass another path"),
    "below a file": (below_a_file, r"file is no folder; pass another path"),
    "below a device": (lambda folder: Path("/dev/null/x"), "/dev/null is no folder; pass another path"),
    "a long name": (lambda folder: folder / ("x" * 300) / "x", "a name in the path is too long .*; pass another path"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
@pytest.mark.parametrize("write", [make_folder, lambda path: write_atomic(path, b"x")], ids=["folder", "file"])
def test_a_path_that_cannot_exist(tmp_path: Path, case: str, write: Callable[[Path], Path]) -> None:
    make, message = IMPOSSIBLE[case]
    path = make(tmp_path)
    with pytest.raises(OSError, match=message) as error:
        write(path)
    assert error.value.filename in (str(path), str(path.parent))


def test_a_folder_where_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("keep")
    with pytest.raises(FileExistsError, match="x is no folder; pass another path"):
        make_folder(tmp_path / "x")
    assert (tmp_path / "x").read_text() == "keep"


def test_a_file_where_a_folder_or_a_device_is(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="is a folder, and a file is expected; pass another path"):
        write_atomic(tmp_path, b"x")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(OSError, match="it is a device or a pipe, and a file is expected"):
            write_atomic(path, b"x")
    assert Path("/dev/null").is_char_device()


def test_a_link_to_nothing(tmp_path: Path) -> None:
    with pytest.raises(
        OSError, match="link is a symbolic link that leads to nothing, or in a circle; pass another path"
    ):
        make_folder(dangling(tmp_path))


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EROFS, r"the disk is read-only \(Read-only file system\); pass another path"),
        (errno.ENOSPC, r"the disk is full \(No space left on device\); make room"),
        (errno.EDQUOT, r"the disk is full \(Disk quota exceeded\); make room"),
        (errno.EACCES, r"this user may not write there \(Permission denied\); pass another path"),
        (errno.EIO, "Input/output error; pass another path"),
    ],
)
@pytest.mark.parametrize("function", ["mkstemp", "fsync", "replace"])
def test_a_disk_that_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str, function: str
) -> None:
    (tmp_path / "x").write_text("old")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "a temporary name")

    monkeypatch.setattr(tempfile if function == "mkstemp" else os, function, refuse)
    with pytest.raises(OSError, match=message) as error:
        write_atomic(tmp_path / "x", b"new")
    assert error.value.filename == str(tmp_path / "x")
    assert (tmp_path / "x").read_text() == "old"
    assert leftovers(tmp_path / "x") == []


def test_a_command_says_what_is_in_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "names.json").write_text('["cat", "dog"]')
    words = ["embed", "--classes", str(tmp_path / "names.json"), "--output", str(tmp_path / "file" / "x" / "y")]
    (tmp_path / "file").touch()
    assert main(words) == 1
    assert f"{tmp_path / 'file'} is no folder" in capsys.readouterr().err
