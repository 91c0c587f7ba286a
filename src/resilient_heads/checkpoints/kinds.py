"""What a file is that should hold weights, by its content; files that hold none are refused with what to do."""

import os
import stat
import zipfile
import zlib
from pathlib import Path
from typing import Literal

from resilient_heads.errors import ModelError

Kind = Literal["safetensors", "torch", "index"]

SAVE = "save the weights alone, where the model is: torch.save(model.state_dict(), path)"
_HEAD = 4096
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (
        b"version https://git-lfs.github.com/",
        "a Git LFS pointer, which stands for the file; run `git lfs pull` in its folder",
    ),
    (b"\x93NUMPY", f"a NumPy array without names; {SAVE}"),
    (b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (b"BZh", "compressed with bzip2; unpack it first"),
    (b"\xfd7zXZ", "compressed with xz; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"\x89HDF", f"an HDF5 file, as Keras writes it; load it there, then {SAVE}"),
    (b"GGUF", f"a GGUF file of quantised weights; load it in its library, then {SAVE}"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"%PDF", "a PDF document"),
)
_FOLDER_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)


def kind_of(path: Path) -> Kind:
    """Return how the weights in a file are stored.

    Raises:
        ModelError: The path is no file, or the file holds no weights that this library reads. The message says what it
            is and what to do.
        FileNotFoundError: There is nothing at the path.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ModelError(f"{path} is a folder. {_inside(path)}")
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{path} is a device or a pipe; expected a file of weights.")
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no checkpoint {path}.") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from error
    if not head:
        raise ModelError(f"{path} is empty (0 bytes); download or copy it again.")
    for magic, words in _MAGIC:
        if head.startswith(magic):
            raise ModelError(f"{path} is {words}.")
    if head.startswith(b"PK"):
        _check_zip(path)
        return "torch"
    if path.name.endswith(".index.json") and head.lstrip()[:1] == b"{":
        return "index"
    if head[8:9] == b"{":
        _check_safetensors(path, int.from_bytes(head[:8], "little"), status.st_size)
        return "safetensors"
    if head.startswith(b"\x80") and len(head) > 2:
        return "torch"  # a pickle, as PyTorch before 1.6 wrote it
    raise ModelError(f"{path} is {_other(head, path)}.")


def _inside(folder: Path) -> str:
    """Return what to do with a folder."""
    if (folder / ".metadata").is_file():
        return (
            "It is a distributed checkpoint; merge its files into one, then load that: "
            'torch.distributed.checkpoint.format_utils.dcp_to_torch_save(folder, "merged.pt").'
        )
    present = [name for name in _FOLDER_FILES if (folder / name).is_file()]
    if present:
        return f"Name the file of weights in it: {folder / present[0]}."
    names = sorted(os.listdir(folder))[:5]
    return f"Name a file of weights; it holds {', '.join(map(repr, names)) or 'nothing'}."


def _check_zip(path: Path) -> None:
    """Raise ModelError for a zip file that torch.save did not write, or that is not complete."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            _check_sums(archive)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path} is truncated or damaged; download or copy it again.") from error
    files = {name.partition("/")[2] for name in names}
    if "constants.pkl" in files or any(name.startswith("code/") for name in files):
        raise ModelError(f"{path} is a TorchScript archive; load it with torch.jit.load, then {SAVE}.")
    if "data.pkl" in files:
        return
    if "archive_format" in files or any(name.startswith("models/") for name in files):
        raise ModelError(f"{path} is an exported program; load it with torch.export.load, then {SAVE}.")
    if names and all(name.endswith(".npy") for name in names):
        raise ModelError(f"{path} is an .npz file of NumPy arrays, which are no state dict; {SAVE}.")
    shown = ", ".join(map(repr, names[:3])) or "nothing"
    raise ModelError(f"{path} is a zip archive that torch.save did not write (it holds {shown}); unpack it first.")


def _check_sums(archive: zipfile.ZipFile) -> None:
    """Raise BadZipFile for a file that differs from its checksum, which PyTorch does not compare."""
    for entry in archive.infolist():
        if entry.CRC:  # 0 in a file without checksums
            with archive.open(entry) as file:
                while file.read(2**22):
                    pass


def _check_safetensors(path: Path, header: int, size: int) -> None:
    """Raise ModelError if a safetensors file is shorter than its header says."""
    if header > size - 8:
        raise ModelError(
            f"{path} is truncated or damaged: its header should have {header} bytes, the file has {size}. Download or "
            "copy it again."
        )


def _other(head: bytes, path: Path) -> str:
    """Return what a file is that is in no format of weights."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:200].lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page, such as a login or an error page; download the file itself"
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    if head[4:8] == b"TFL3":
        return f"a TensorFlow Lite file; load it there, then {SAVE}"
    if path.suffix == ".onnx" or (head[:1] == b"\x08" and b"pytorch" in head[:64]):
        return f"an ONNX file; find the model that it was exported from, then {SAVE}"
    if path.suffix == ".safetensors":
        return "no safetensors file: its header is damaged; download or copy it again"
    try:
        text = head.decode("utf-8", errors="strict" if len(head) < _HEAD else "ignore")
    except UnicodeDecodeError:
        text = ""
    if text.lstrip()[:1] in ("{", "["):
        return "a JSON file; expected a file of weights"
    if text.isprintable() or text.replace("\n", "").replace("\t", "").replace("\r", "").isprintable():
        return "a text file; expected a file of weights" if text else "no file of weights that this library reads"
    return "no file of weights that this library reads: expected safetensors, or what torch.save wrote"
