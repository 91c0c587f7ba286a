"""Files that are no checkpoint are refused with what they are and what to do."""

import io
import json
import os
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save as save_tensors
from safetensors.torch import save_file, save_model
from torch import nn

import resilient_heads as rh
from helpers.checkpoints import Residual, once
from helpers.heads import snapshot
from resilient_heads.errors import ModelError

AGAIN = "download or copy it again"


class Code:
    """Would run on unpickling."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('pickle ran')",))


def saved(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def archive(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, data in files.items():
            file.writestr(name, data)
    return content.getvalue()


def tarred() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as file:
        file.addfile(tarfile.TarInfo("weights.pt"))
    return content.getvalue()


def numpy_file(write: Callable[..., Any]) -> bytes:
    content = io.BytesIO()
    write(content, np.ones(3))
    return content.getvalue()


def scripted() -> bytes:
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), content)
    return content.getvalue()


def flipped(content: bytes, inside: torch.Tensor) -> bytes:
    """Flip a bit in the bytes of a tensor."""
    position = content.index(inside.numpy().tobytes()) + 5
    return content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :]


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 46830571\n"
STATE = Residual().state_dict()
TENSORS = save_tensors({name: value.clone() for name, value in STATE.items()})

FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "pointer.pt": (lambda: POINTER, "is a Git LFS pointer.*run `git lfs pull`"),
    "pointer.safetensors": (lambda: POINTER, "is a Git LFS pointer"),
    "page.pt": (lambda: b"<!DOCTYPE html>\n<html><title>Log in</title></html>", "is a web page.*download the file"),
    "page.safetensors": (lambda: b"\n <html lang='en'></html>", "is a web page"),
    "empty.pt": (lambda: b"", "is empty \\(0 bytes\\)"),
    "empty.safetensors": (lambda: b"", "is empty"),
    "json.pt": (lambda: b'{"fc.weight": [1, 2]}', "is a JSON file"),
    "list.bin": (lambda: b"[1, 2]", "is a JSON file"),
    "text.pt": (lambda: b"weights", "is a text file"),
    "escape.pt": (lambda: b"\x1b[31mred\x1b[0m", "no file of weights"),
    "noise.bin": (lambda: bytes(range(255, 200, -1)) * 9, "no file of weights that this library reads"),
    "array.npy": (lambda: numpy_file(np.save), "is a NumPy array without names.*torch.save"),
    "arrays.npz": (lambda: numpy_file(np.savez), "is an .npz file of NumPy arrays"),
    "weights.tar": (tarred, "is a tar archive; unpack it first"),
    "weights.tar.gz": (lambda: b"\x1f\x8b\x08" + bytes(9), "is compressed with gzip; unpack it first"),
    "photos.zip": (lambda: archive({"a.jpg": b"1", "b.jpg": b"2"}), "zip archive that torch.save did not.*'a.jpg', 'b"),
    "scripted.pt": (scripted, "is a TorchScript archive; load it with torch.jit.load, then save the weights alone"),
    "keras.h5": (lambda: b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
    "model.gguf": (lambda: b"GGUF\x03", "is a GGUF file"),
    "model.tflite": (lambda: b"\x1c\x00\x00\x00TFL3", "is a TensorFlow Lite file"),
    "model.onnx": (lambda: b"\x08\x08\x12\x07pytorch", "is an ONNX file"),
    "exported.bin": (lambda: b"\x08\x08\x12\x07pytorch", "is an ONNX file"),
    "photo.pt": (lambda: b"\x89PNG\r\n\x1a\n", "is an image"),
    "whole.pt": (
        lambda: saved(nn.Linear(2, 2)),
        r"object of the class torch\.nn\.modules\.linear\.Linear, ",
    ),
    "own.pt": (lambda: saved(Residual()), r"object of the class \w+\.checkpoints\.Residual|checkpoints\.Residual"),
    "tensor.pt": (lambda: saved(torch.ones(3)), r"holds one tensor \(3,\) without a name"),
    "list.pt": (lambda: saved([1, 2]), "holds a list, not a state dict"),
    "nothing.pt": (lambda: saved({}), "holds no state dict of Residual; found nothing"),
    "code.pt": (lambda: saved(Code()), r"object of the class builtins\.exec, which would run its code"),
    "code.pkl": (lambda: pickle.dumps(Code()), "is damaged, or holds more than tensors"),
    "pickle.pkl": (lambda: pickle.dumps({"fc.weight": np.ones(3)}), "is damaged, or holds more than tensors"),
    "legacy.pt": (lambda: saved(Residual(), _use_new_zipfile_serialization=False), "holds more than tensors"),
    "cut.pt": (lambda: saved(STATE)[:-300], f"is truncated or damaged; {AGAIN}"),
    "start.pt": (lambda: saved(STATE)[:300], f"is truncated or damaged; {AGAIN}"),
    "flipped.pt": (lambda: flipped(saved(STATE), STATE["conv.weight"]), f"is truncated or damaged; {AGAIN}"),
    "cut.safetensors": (lambda: TENSORS[:-9], "is a truncated or damaged safetensors file"),
    "header.safetensors": (lambda: TENSORS[:50], r"is truncated or damaged: its header should have \d+ bytes"),
    "lie.safetensors": (lambda: struct.pack("<Q", 2**62) + TENSORS[8:], "its header should have 4611686018427387904"),
    "offsets.safetensors": (
        lambda: TENSORS.replace(b'"data_offsets":[0,', b'"data_offsets":[1,'),
        "is a truncated or damaged safetensors file",
    ),
    "deep.safetensors": (
        lambda: struct.pack("<Q", 10**6) + b'{"a":' * 200_000,
        "is a truncated or damaged safetensors",
    ),
    "twice.safetensors": (lambda: TENSORS + b"\0" * 8, "is a truncated or damaged safetensors"),
}


def check_refused(path: Path, message: str) -> None:
    model = Residual()
    before = snapshot(model)
    with pytest.raises(ModelError, match=message) as caught:
        rh.load_checkpoint(model, path)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    said = str(caught.value)
    assert str(path) in said
    assert len(said) < 500
    assert not any(words in said for words in ("weights_only", "trust", "\x1b"))


@pytest.mark.parametrize("name", FILES)
def test_a_file_without_weights_is_refused_with_what_it_is(tmp_path: Path, name: str) -> None:
    build, message = FILES[name]
    (tmp_path / name).write_bytes(build())
    check_refused(tmp_path / name, message)


def test_a_folder_is_refused_with_the_file_to_name(tmp_path: Path) -> None:
    check_refused(tmp_path, "is a folder. Name a file of weights; it holds nothing")
    (tmp_path / "notes.txt").write_text("")
    check_refused(tmp_path, "it holds 'notes.txt'")
    (tmp_path / "model.safetensors").write_bytes(TENSORS)
    check_refused(tmp_path, r"Name the file of weights in it: .*model\.safetensors\.")
    (tmp_path / ".metadata").write_bytes(b"")
    check_refused(tmp_path, r"is a distributed checkpoint; merge.*dcp_to_torch_save\(folder, \"merged\.pt\"\)")


def test_a_device_is_refused() -> None:
    check_refused(Path(os.devnull), "is a device or a pipe")


def test_nothing_at_the_path_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint .*absent\.pt"):
        rh.load_checkpoint(Residual(), tmp_path / "absent.pt")
    (tmp_path / "link.pt").symlink_to(tmp_path / "absent.pt")
    with pytest.raises(FileNotFoundError, match="There is no checkpoint"):
        rh.load_checkpoint(Residual(), tmp_path / "link.pt")


def test_a_tied_model_loads_from_the_file_that_safetensors_writes(tmp_path: Path) -> None:
    source, model = Residual(), Residual()
    save_model(source, tmp_path / "tied.safetensors")
    rh.load_checkpoint(model, str(tmp_path / "tied.safetensors"))
    assert torch.equal(model.tied.weight, source.module.weight)
    assert model.tied.weight is model.module.weight


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".bin", ""])
def test_the_content_decides_and_not_the_suffix(tmp_path: Path, suffix: str) -> None:
    source, model = Residual(), Residual()
    save_file(once(source.state_dict()), tmp_path / f"a{suffix}")
    torch.save(source.state_dict(), tmp_path / f"b{suffix}")
    for name in "ab":
        rh.load_checkpoint(model, tmp_path / f"{name}{suffix}")
        assert torch.equal(model.conv.weight, source.conv.weight)


def test_a_file_of_an_old_pytorch_loads(tmp_path: Path) -> None:
    source, model = Residual(), Residual()
    torch.save({"state_dict": source.state_dict()}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    rh.load_checkpoint(model, tmp_path / "old.pth")
    assert torch.equal(model.conv.weight, source.conv.weight)


def test_a_file_without_checksums_loads(tmp_path: Path) -> None:
    source, model = Residual(), Residual()
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(source.state_dict(), tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    rh.load_checkpoint(model, tmp_path / "a.pt")
    assert torch.equal(model.conv.weight, source.conv.weight)


def sharded(folder: Path, suffix: str) -> Path:
    """Write weights as Hugging Face's libraries write large ones: two files and an index."""
    state = once(Residual().state_dict())
    names = sorted(state)
    files = {name: f"model-{1 + position % 2}-of-2{suffix}" for position, name in enumerate(names)}
    for file in set(files.values()):
        part = {name: state[name] for name in names if files[name] == file}
        (save_file if suffix == ".safetensors" else torch.save)(part, folder / file)
    index = folder / f"model{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files}))
    torch.save(state, folder / "whole.pt")
    return index


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_an_index_loads_all_its_files(tmp_path: Path, suffix: str) -> None:
    index, model, twin = sharded(tmp_path, suffix), Residual(), Residual()
    rh.load_checkpoint(model, index)
    rh.load_checkpoint(twin, tmp_path / "whole.pt")
    assert all(torch.equal(twin.state_dict()[name], value) for name, value in model.state_dict().items())


def test_a_tensor_in_two_files_comes_from_the_one_that_the_index_names(tmp_path: Path) -> None:
    first, second, model = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 2)
    save_file(first.state_dict(), tmp_path / "1.safetensors")
    save_file(second.state_dict(), tmp_path / "2.safetensors")
    files = {"weight": "1.safetensors", "bias": "2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    rh.load_checkpoint(model, tmp_path / "model.safetensors.index.json")
    assert torch.equal(model.weight, first.weight)
    assert torch.equal(model.bias, second.bias)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "is no index of weights"),
        ('{"weight_map": []}', "is no index of weights"),
        ('{"weight_map": {}}', "must name files of weights in its own folder"),
        ('{"weight_map": {"a": "../secret.pt"}}', r"in its own folder, found \['\.\./secret\.pt'\]"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "in its own folder"),
        ('{"weight_map": {"a": "a.index.json"}}', "must name files of weights"),
        ('{"weight_map": {"a": "model-1-of-2.safetensors"}}', r"lack 1 tensors, such as 'a'"),
        ('{"weight_map": {"a": "model-3-of-2.safetensors"}}', r"model-3-of-2\.safetensors is missing"),
        ("[" * 10**6, "is a JSON file|is no index of weights"),
        ("{" * 10**6, "is no index of weights"),
    ],
)
def test_a_wrong_index_is_refused(tmp_path: Path, content: str, message: str) -> None:
    sharded(tmp_path, ".safetensors")
    (tmp_path / "a.index.json").write_text(content)
    model = Residual()
    with pytest.raises(ModelError, match=message):
        rh.load_checkpoint(model, tmp_path / "a.index.json")
