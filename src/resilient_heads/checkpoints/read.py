"""Read a file of weights without running any code in it."""

import json
import os
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from resilient_heads.checkpoints.kinds import SAVE, kind_of
from resilient_heads.errors import ModelError

_LARGEST_INDEX = 64 * 2**20


def read_weights(path: Path) -> Mapping[Any, Any]:
    """Return what a file of weights holds: a state dict, or the mapping that a training script put around it.

    Objects beside the tensors, such as the options of a training script, are replaced by objects without content:
    no code of the file and no class of it is used.

    Args:
        path: A safetensors file, a file of ``torch.save``, or the ``.index.json`` of several such files.

    Raises:
        ModelError: The file holds no weights, or is damaged; the message says what it is.
        FileNotFoundError: There is no such file.
    """
    kind = kind_of(path)
    if kind == "index":
        return _read_index(path)
    if kind == "safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError, RecursionError, MemoryError) as error:
            raise ModelError(
                f"{path} is a truncated or damaged safetensors file; download or copy it again."
            ) from error
    content = _read_pickle(path)
    if not isinstance(content, Mapping):
        raise ModelError(f"{path} holds {_described(content)}, not a state dict; {SAVE}.")
    return content


class _Inert:
    """Stands for an object of a class that is not read."""

    def __new__(cls, *args: object, **options: object) -> "_Inert":
        return object.__new__(cls)

    def __init__(self, *args: object, **options: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _read_pickle(path: Path) -> Any:
    """Return the object in a file of ``torch.save``."""
    names = _classes_in(path)
    stand_ins: list[Any] = [(type(name, (_Inert,), {}), name) for name in names]
    try:
        with torch.serialization.safe_globals(stand_ins), path.open("rb") as file:  # a path's suffix would count
            return torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged pickle can raise any exception
        foreign = [name for name in names if not name.startswith(("torch.", "collections.", "_codecs."))]
        held = f" (it names {', '.join(foreign[:3])})" if foreign else ""
        raise ModelError(f"{path} is damaged, or holds more than tensors and numbers{held}; {SAVE}.") from error


def _classes_in(path: Path) -> list[str]:
    """Return the dotted names of the classes and functions in a zip file of ``torch.save``, without using them."""
    if not zipfile.is_zipfile(path):
        return []
    try:
        with zipfile.ZipFile(path) as archive:
            (record,) = (entry for entry in archive.infolist() if entry.filename.partition("/")[2] == "data.pkl")
            del record.CRC  # checked before, unless the file has no checksums
            operations = pickletools.genops(archive.read(record))
            named = [str(value) for operation, value, _ in operations if operation.name == "GLOBAL"]
    except Exception as error:  # a damaged archive or pickle can raise any exception
        raise ModelError(f"{path} is damaged; download or copy it again.") from error
    return sorted({name.replace(" ", ".").replace("__builtin__.", "builtins.") for name in named})


def _read_index(path: Path) -> dict[str, Any]:
    """Return the tensors of all files that an index names; they lie beside it."""
    try:
        if path.stat().st_size > _LARGEST_INDEX:
            raise ValueError("it is larger than any index")
        table = json.loads(path.read_bytes())["weight_map"]
        files = {name: str(file) for name, file in table.items()}
        if not all(len(os.fsencode(file)) < 256 for file in files.values()):
            raise ValueError("it names files that no system can hold")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f'{path} is no index of weights: expected {{"weight_map": {{name: file}}}}.') from error
    wrong = [file for file in files.values() if Path(file).name != file or file.endswith(".json")]
    if wrong or not files:
        raise ModelError(f"{path} must name files of weights in its own folder, found {wrong[:1]!r:.80}.")
    content: dict[str, Any] = {}
    for file in sorted(set(files.values())):
        if not (path.parent / file).is_file():
            raise ModelError(f"{path.parent / file} is missing, but {path.name} names it; download or copy it.")
        held = {str(name): value for name, value in read_weights(path.parent / file).items()}
        content |= {name: value for name, value in held.items() if files.get(name, file) == file}
    lacking = [name for name in files if name not in content]
    if lacking:
        raise ModelError(f"The files that {path} names lack {len(lacking)} tensors, such as {lacking[0]!r}.")
    return content


def _described(content: object) -> str:
    """Return what an object is, as a noun."""
    if isinstance(content, torch.Tensor):
        return f"one tensor {tuple(content.shape)} without a name"
    kind = type(content)
    if isinstance(content, _Inert):
        return f"a pickled object of the class {kind.__name__}, which would run its code"
    return f"a {kind.__name__}"
