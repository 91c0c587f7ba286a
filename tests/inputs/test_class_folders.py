"""Which folders are classes and which files their pictures, for folders as they lie on real disks."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from resilient_heads.errors import DataError
from resilient_heads.inputs.class_folders import find_class_folders


def tree(root: Path, *files: str) -> Path:
    """Write empty files; a name that ends in a slash is a folder."""
    for name in files:
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.touch()
    return root


def found(root: Path) -> dict[str, list[str]]:
    folders = find_class_folders(root)
    return {name: [str(file.relative_to(root / name)) for file in files] for name, files in folders.files.items()}


ANT_AND_BEE = {"ant": ["0.png", "1.png"], "bee": ["0.png"]}
PICTURES = ("ant/0.png", "ant/1.png", "bee/0.png")
NOT_CLASSES = (
    ".ipynb_checkpoints/0.png",
    ".git/0.png",
    "__MACOSX/ant/0.png",
    "__pycache__/0.pyc",
    "lost+found/",
    "@eaDir/0.png",
    "$RECYCLE.BIN/0.png",
    "System Volume Information/",
    ".DS_Store",
    "Thumbs.db",
    "README.md",
    "stray.png",
    "ant/.ipynb_checkpoints/0-checkpoint.png",
    "ant/._0.png",
    "ant/.hidden/0.png",
    "bee/__MACOSX/0.png",
)


@pytest.mark.parametrize("name", NOT_CLASSES)
def test_what_tools_leave_is_no_class_and_no_picture(tmp_path: Path, name: str) -> None:
    assert found(tree(tmp_path, *PICTURES, name)) == ANT_AND_BEE


def test_pictures_lie_at_any_depth_and_other_files_are_counted(tmp_path: Path) -> None:
    names = ("a/images/0.JPEG", "a/x/y/1.jpg", "a/boxes.txt", "a/x/boxes.TXT", "b/2.Png", "b/movie", "b/x.heic")
    folders = find_class_folders(tree(tmp_path, *names))
    assert {name: [file.name for file in files] for name, files in folders.files.items()} == {
        "a": ["0.JPEG", "1.jpg"],
        "b": ["2.Png"],
    }
    assert folders.left_out == {".txt": 2, "no ending": 1, ".heic": 1}


def test_names_in_any_script_and_with_any_bytes(tmp_path: Path) -> None:
    root = os.fsencode(tmp_path)
    for name in ("Käfer", "虎", "a b", "new\nline", "x@y"):
        os.mkdir(os.path.join(root, name.encode()))
        Path(os.fsdecode(os.path.join(root, name.encode())), "0.png").touch()
    os.mkdir(os.path.join(root, b"\xff\xfe"))
    folders = find_class_folders(tmp_path)
    assert set(folders.files) == {"Käfer", "虎", "a b", "new\nline", "x@y", "\udcff\udcfe"}
    assert folders.empty == ["\udcff\udcfe"]


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "nothing": ((), "has no subfolder; expected a folder with a subfolder of pictures for each class"),
    "pictures alone": (("0.png", "1.png"), "has no subfolder"),
    "hidden alone": ((".ant/0.png",), "has no subfolder"),
    "splits": (("train/ant/0.png", "val/ant/0.png"), r"holds splits of a data set \('?train'?, '?val'?\), not classes"),
    "splits and more": (("Train/a/0.png", "Test/a/0.png", "meta/m.txt"), "holds splits"),
    "one split": (("train/ant/0.png",), "holds splits"),
    "no pictures": (("ant/0.txt", "bee/"), "has 2 subfolders, but no picture in them; expected files that end in"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_folders_that_are_not_classes_are_refused(tmp_path: Path, case: str) -> None:
    names, message = REFUSED[case]
    with pytest.raises(DataError, match=message):
        find_class_folders(tree(tmp_path, *names))


def link(root: Path, name: str, target: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).symlink_to(target)


def outside(root: Path) -> None:
    tree(root.parent / "elsewhere", "5.png")
    link(root, "ant/5.png", "../../elsewhere/5.png")


LINKS: dict[str, tuple[Callable[[Path], None], dict[str, list[str]], int]] = {
    "a picture elsewhere": (outside, ANT_AND_BEE | {"ant": ["0.png", "1.png", "5.png"]}, 0),
    "a folder elsewhere": (
        lambda root: (tree(root.parent / "elsewhere", "5.png"), link(root, "cow", "../elsewhere")),
        ANT_AND_BEE | {"cow": ["5.png"]},
        0,
    ),
    "a picture of the class": (lambda root: link(root, "ant/2.png", "0.png"), ANT_AND_BEE, 1),
    "a hard link": (lambda root: os.link(root / "ant/0.png", root / "ant/2.png"), ANT_AND_BEE, 1),
    "a folder twice": (
        lambda root: (tree(root, "bee/x/1.png"), link(root, "bee/y", "x")),
        ANT_AND_BEE | {"bee": ["0.png", "x/1.png"]},
        1,
    ),
    "a chain of two folders": (
        lambda root: (
            [
                (
                    tree(root, f"bee/{n}/"),
                    link(root, f"bee/{n}/a", f"../{n + 1}"),
                    link(root, f"bee/{n}/b", f"../{n + 1}"),
                )
                for n in range(20)  # 2 ** 20 ways to the last one
            ]
            and tree(root, "bee/20/")
        ),
        ANT_AND_BEE,
        40,
    ),
}


@pytest.mark.parametrize("case", LINKS)
def test_links_count_each_picture_once(tmp_path: Path, case: str) -> None:
    root = tree(tmp_path / "data", *PICTURES)
    make, expected, repeated = LINKS[case]
    make(root)
    folders = find_class_folders(root)
    read = {name: [str(file.relative_to(root / name)) for file in files] for name, files in folders.files.items()}
    assert read == expected
    assert folders.repeated == repeated


BAD_LINKS = {
    "up": (lambda root: link(root, "ant/up", ".."), r"ant/up is a link that leads to a folder in which it lies"),
    "to its class": (lambda root: link(root, "ant/here", "."), "ant/here is a link that leads to a folder in which it"),
    "far up": (lambda root: link(root, "ant/x/y/up", "../.."), "x/y/up is a link that leads to a folder"),
    "a class that is the data": (lambda root: link(root, "all", "."), "all is a link that leads to a folder in which"),
    "to itself": (lambda root: link(root, "ant/self.png", "self.png"), "self.png is a link that leads in a circle"),
    "a class to itself": (lambda root: link(root, "self", "self"), "self is a link that leads in a circle"),
    "to nothing": (lambda root: link(root, "ant/2.png", "absent.png"), "2.png is a link that leads to nothing"),
    "a class to nothing": (lambda root: link(root, "cow", "absent"), "cow is a link that leads to nothing"),
    "a class twice": (
        lambda root: link(root, "cow", "ant"),
        r"ant/0\.png and .*cow/0\.png are one file in two classes",
    ),
    "a picture twice": (lambda root: link(root, "bee/2.png", "../ant/0.png"), "are one file in two classes"),
    "hard": (lambda root: os.link(root / "ant/0.png", root / "bee/9.png"), "are one file in two classes"),
    "a pipe": (lambda root: os.mkfifo(root / "ant/2.png"), "2.png is no file; expected a picture"),
    "a device": (lambda root: link(root, "ant/2.png", "/dev/zero"), "2.png is no file"),
}


@pytest.mark.parametrize("case", BAD_LINKS)
def test_links_that_would_change_the_labels_are_refused(tmp_path: Path, case: str) -> None:
    root = tree(tmp_path / "data", *PICTURES)
    make, message = BAD_LINKS[case]
    make(root)
    with pytest.raises(DataError, match=message):
        find_class_folders(root)


@pytest.mark.slow
def test_a_hundred_thousand_pictures_are_listed_in_seconds(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / str(number)).mkdir()
        for picture in range(1000):
            (tmp_path / str(number) / f"{picture}.png").touch()
    start = time.perf_counter()
    assert sum(map(len, find_class_folders(tmp_path).files.values())) == 100_000
    assert time.perf_counter() - start < 10
