"""Which class of the model each folder of pictures is: by the model's labels, a file, or the order of the names."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from resilient_heads.checks import normalized, printable
from resilient_heads.errors import DataError

CLASS_INDEX = "class_to_idx.json"
"""A file of this name in the data set's folder gives the order of the classes."""

Labels = tuple[tuple[str, ...], ...]
"""The names of each class of a model; a class may have several, such as a synset and words."""

Sort = Literal["numeric", "name"]
_WAYS_OUT = (
    'pass --class-index FILE with JSON such as {"cat": 0, "dog": 1}, or --sort name if the folders, sorted by name, '
    "are the model's classes 0, 1, 2, ..."
)
_MOST_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassOrder:
    """The class of each folder.

    Attributes:
        index: Class of the model, by the folder's name; in the order of the classes.
        origin: Where the order came from, as the end of a sentence.
        assumed: Whether nothing but the names gave the order. It holds only if each class of the model has a folder.
    """

    index: dict[str, int]
    origin: str
    assumed: bool = False


def order_of(
    names: Sequence[str],
    labels: Labels | None,
    *,
    folder: Path,
    index_file: Path | None = None,
    sort: Sort | None = None,
) -> ClassOrder:
    """Find the class of each folder.

    The first of these that there is decides: ``sort``, ``index_file``, the file ``class_to_idx.json`` in the folder,
    the model's labels, the names if their order is clear. Names are compared without regard to case, spaces,
    underscores and punctuation.

    Args:
        names: Names of the class folders.
        labels: Names of the model's classes; None if unknown.
        folder: The data set.
        index_file: JSON with the class of each name.
        sort: ``"numeric"``: by the numbers that the names are; ``"name"``: as torchvision's ``ImageFolder`` sorts.

    Raises:
        DataError: The order is unclear, a file of class indices is wrong, or two folders are one class.
    """
    if sort is not None:
        return _sorted(names, sort)
    if index_file is not None:
        return _by_names(names, _read_index(index_file), f"{printable(index_file)}")
    if (folder / CLASS_INDEX).is_file():
        order = _by_names(names, _read_index(folder / CLASS_INDEX), f"{printable(folder / CLASS_INDEX)}")
        if labels is not None and (conflict := conflict_with(labels, order)):
            raise DataError(f"{conflict} To follow the file, pass it as --class-index.")
        return order
    if labels is not None and set(names) != {str(number) for number in range(len(labels))}:
        return _by_names(names, dict(enumerate(with_synsets(labels))), "the model's labels")
    if labels is None and all(_is_number(name) for name in names) and sorted(names) != sorted(names, key=int):
        raise DataError(
            f"The folders of {printable(folder)} are numbered, and the order is unclear: pass --sort numeric if the "
            "model's classes follow the numbers, or --sort name if the model was trained with torchvision's "
            "ImageFolder, which reads '10' before '2'."
        )
    order = _sorted(names, "numeric" if all(_is_number(name) for name in names) else "name")
    return replace(order, assumed=labels is None)


def conflict_with(labels: Labels, order: ClassOrder) -> str | None:
    """Return a sentence about the first folder whose class has another label in the model; None if there is none."""
    known = _numbers_of(dict(enumerate(with_synsets(labels))))
    for name, index in order.index.items():
        others = known.get(_normal(name), set())
        if others and index not in others:
            label = labels[index][0] if index < len(labels) else "none"
            return (
                f"{printable(name)!r} is class {index} in {order.origin}, but class {min(others)} in the model's "
                f"labels (the model's class {index} is {printable(label)!r})."
            )
    return None


def with_synsets(labels: Labels) -> Labels:
    """Add WordNet's synsets, the folder names of ImageNet, to the labels of a model of ImageNet-1k."""
    ends = [{_normal(name) for name in labels[place]} for place in (0, -1)] if len(labels) == 1000 else []
    if not ends or "tench" not in ends[0] or not {"toilet tissue", "toilet paper"} & ends[1]:
        return labels
    text = (files("resilient_heads") / "assets" / "imagenet1k_synsets.txt").read_text(encoding="ascii")
    return tuple((*names, synset) for names, synset in zip(labels, text.split(), strict=True))


def _sorted(names: Sequence[str], sort: Sort) -> ClassOrder:
    """Number the folders in the order of their names."""
    if sort == "name":
        return ClassOrder(index={name: rank for rank, name in enumerate(sorted(names))}, origin="the sorted names")
    if strange := [name for name in names if not _is_number(name)]:
        raise DataError(f"--sort numeric needs folders that are numbers, found {printable(strange[0])!r}.")
    if len({int(name) for name in names}) < len(names):
        raise DataError("Two folders are the same number; rename or remove one.")
    ranks = {name: rank for rank, name in enumerate(sorted(names, key=int))}
    return ClassOrder(index=ranks, origin="the numbers of the folders")


def _by_names(names: Sequence[str], classes: Mapping[int, Sequence[str]], origin: str) -> ClassOrder:
    """Look up each folder among the names of the classes."""
    known = _numbers_of(classes)
    found = {name: known.get(_normal(name), set()) for name in names}
    if missing := [name for name, numbers in found.items() if not numbers]:
        close = get_close_matches(_normal(missing[0]), list(known), n=1)
        hint = f" (the nearest name is {printable(close[0])!r})" if close else ""
        raise DataError(
            f"{len(missing)} of {len(names)} class folders have no name of {origin}: {_listed(missing)}{hint}; "
            f"expected names such as {_listed([each[0] for each in classes.values()], most=3)}. Rename them, "
            f"or {_WAYS_OUT}."
        )
    if unclear := [name for name, numbers in found.items() if len(numbers) > 1]:
        numbers = " and ".join(str(number) for number in sorted(found[unclear[0]]))
        raise DataError(
            f"{printable(unclear[0])!r} is the name of classes {numbers} of {origin}; pass --class-index FILE with "
            f'the right one, such as {{"{printable(unclear[0])}": {min(found[unclear[0]])}}} and so on.'
        )
    index = {name: min(numbers) for name, numbers in found.items()}
    first: dict[int, str] = {}
    for name, number in index.items():
        if (other := first.setdefault(number, name)) != name:
            raise DataError(f"{printable(other)!r} and {printable(name)!r} are both class {number} of {origin}.")
    return ClassOrder(index=dict(sorted(index.items(), key=lambda pair: pair[1])), origin=origin)


def _numbers_of(classes: Mapping[int, Sequence[str]]) -> dict[str, set[int]]:
    """Return the classes that bear each name; a name of a whole class comes before one among several words."""
    whole: dict[str, set[int]] = {}
    parts: dict[str, set[int]] = {}
    for number, names in classes.items():
        for name in names:
            whole.setdefault(_normal(name), set()).add(number)
            for part in name.split(","):
                parts.setdefault(_normal(part), set()).add(number)
    return parts | whole


def _read_index(path: Path) -> dict[int, list[str]]:
    """Return the names of each class in a JSON file.

    The file holds a list of names, ``{"cat": 0}``, ``{"0": "cat"}``, or ``{"0": ["n02123045", "tabby"]}``.

    Raises:
        DataError: The file holds something else, or one name twice.
        FileNotFoundError: There is no such file.
    """
    expected = 'expected JSON such as ["cat", "dog"], {"cat": 0, "dog": 1} or {"0": ["n02123045", "tabby"], ...}'
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {printable(path)}; {expected}.")
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("it is larger than 32 MiB")
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_repeats)
        return _classes_in(content)
    except (ValueError, TypeError, RecursionError) as error:
        reason = printable(str(error) or "it is nested too deeply")
        raise DataError(f"{printable(path)} gives no class indices: {reason}; {expected}.") from error


def _classes_in(content: Any) -> dict[int, list[str]]:
    """Return the names of each class; raise ValueError if the content has none of the forms."""
    if isinstance(content, list):
        content = {str(number): name for number, name in enumerate(content)}
    if not isinstance(content, dict) or not content:
        raise ValueError(f"it holds a {type(content).__name__}" if content else "it is empty")
    classes: dict[int, list[str]] = {}
    for key, value in content.items():
        if isinstance(value, int) and not isinstance(value, bool):
            key, value = value, key
        names = [value] if isinstance(value, str) else value
        if not _is_number(str(key)) or not isinstance(names, list) or not names:
            raise ValueError(f"the entry {str(key)!r:.60} is wrong")
        if not all(isinstance(name, str) and name.strip() for name in names):
            raise ValueError(f"class {key} has a name that is no text")
        if classes.setdefault(int(key), names) is not names:
            raise ValueError(f"class {key} stands there twice")
    return classes


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; raise ValueError if a key stands there twice."""
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{repeated!r:.60} stands there twice")
    return content


def _is_number(name: str) -> bool:
    """Whether a name consists of the digits 0 to 9."""
    return name.isascii() and name.isdecimal() and len(name) <= 18


def _normal(name: str) -> str:
    """Return a name without differences of case, spaces, underscores and punctuation."""
    plain = normalized(name, "NFKC").casefold()
    return re.sub(r"[\W_]+", " ", plain).strip() or plain


def _listed(names: Sequence[str], *, most: int = 5) -> str:
    """Return names as a list in a sentence, cut where it is long."""
    return ", ".join(repr(printable(name)) for name in names[:most]) + (", ..." if len(names) > most else "")
