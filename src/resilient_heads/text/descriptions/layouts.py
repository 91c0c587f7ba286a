"""The JSON layouts in which class descriptions are found in the wild, brought to one."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from resilient_heads.errors import DescriptionError

FORMAT = "resilient_heads.descriptions/1"
_NAME_KEYS = ("name", "class", "class_name", "label")
_TEXT_KEYS = ("descriptions", "sentences", "prompts", "texts")
# Keys that stand beside a table of classes and are none of them.
_ABOUT_THE_FILE = {
    "about", "author", "authors", "citation", "class_names", "classes", "comment", "created", "dataset", "date",
    "description", "format", "id", "info", "licence", "license", "meta", "metadata", "model", "names", "notes",
    "prompts", "provenance", "questions", "source", "sources", "templates", "title", "url", "version",
}  # fmt: skip
# Of these, the ones that name no thing which could be seen.
_NEVER_A_CLASS = frozenset({
    "class_names", "format", "licence", "license", "meta", "metadata", "names", "provenance", "questions", "templates",
    "version",
})  # fmt: skip
_EXPECTED = 'expected {"class name": ["sentence", ...]}'


def parse(
    text: str, *, name: str, asked: Sequence[str] | None = None
) -> tuple[list[tuple[str, list[str]]], dict[str, str]]:
    """Return class names with their sentences in file order, and the provenance if the file records one.

    These layouts are read:

    - ``{"class": ["sentence", ...]}`` and ``{"class": "sentence"}``;
    - ``{"class": {"question": ["sentence", ...] or "sentence"}}``, nested to any depth;
    - ``{"class": {"descriptions": [...], "source": ...}}`` (also ``sentences``, ``prompts``, ``texts``): what stands
      beside them and says something about them is left out, and anything else is refused;
    - ``[{"name": "class", "descriptions": [...]}, ...]`` (also ``class``, ``class_name``, ``label``; ``sentences``,
      ``prompts``, ``texts``);
    - any of these under a ``"descriptions"`` or ``"classes"`` key, as :meth:`ClassDescriptions.save` writes it, beside
      keys that say something about the file, such as ``"meta"``, ``"source"`` or ``"questions"``; beside another key
      with text it is refused, since that may be a class.

    Args:
        text: The file's content.
        name: What errors call it.
        asked: Class names that are wanted. Beside classes, a key such as ``"meta"`` is one only if it is asked for.

    Raises:
        DescriptionError: It is no JSON, another layout, holds no class, or names a class twice.
    """
    try:
        content = json.loads(text, object_pairs_hook=_without_repeats)
    except (json.JSONDecodeError, RecursionError, ValueError) as error:
        if isinstance(error, DescriptionError):
            raise
        raise DescriptionError(f"{name} is not a JSON file: {error}.") from error
    provenance: dict[str, str] = {}
    in_table = False
    if isinstance(content, dict):
        found = content.get("provenance")
        if content.get("format") == FORMAT:
            if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
                raise DescriptionError(f"The provenance in {name} must map names to text, found {found!r:.60}.")
            provenance = found
            if not content.get("classes"):
                raise DescriptionError(f"{name} holds no classes: its list is {content.get('classes')!r:.60}.")
        for key in ("classes", "descriptions"):
            # A class may be called "classes"; only an object or a list of objects is a table of classes.
            table = content.get(key)
            if isinstance(table, dict) or (isinstance(table, list) and table and isinstance(table[0], dict)):
                _check_company(content, key, name)
                content, in_table = table, True
                break
    try:
        if isinstance(content, dict):
            if not in_table:
                content = _without_remarks(content, name, asked)
            return [(key, _sentences(key, value)) for key, value in content.items()], provenance
        if isinstance(content, list):
            return [_entry(position, value) for position, value in enumerate(content)], provenance
    except RecursionError as error:
        raise DescriptionError(f"{name} nests its descriptions too deeply; {_EXPECTED}.") from error
    raise DescriptionError(f"{name} holds a {type(content).__name__}; {_EXPECTED}.")


def render(classes: list[tuple[str, tuple[str, ...]]], provenance: Mapping[str, str]) -> bytes:
    """Return a file's content that :func:`parse` reads back; equal content is equal bytes."""
    content = {
        "format": FORMAT,
        "provenance": dict(sorted(provenance.items())),
        "classes": [{"name": name, "descriptions": list(own)} for name, own in classes],
    }
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode("utf-8")


def _check_company(content: Mapping[str, Any], table: str, name: str) -> None:
    """Refuse what could be a class beside a table of classes, where it would be lost in silence."""
    for key, value in content.items():
        spoken = isinstance(value, str | list | dict)
        if key != table and spoken and key.casefold() not in _ABOUT_THE_FILE:
            raise DescriptionError(
                f"{name} has {key!r} beside {table!r}, which holds its classes. If {key!r} is a class, move it in "
                'there; if it says something about the file, move it under "meta".'
            )


def _without_remarks(content: dict[str, Any], name: str, asked: Sequence[str] | None) -> dict[str, Any]:
    """Leave out what says something about the file; refuse it where nobody said what the classes are."""
    remarks = [key for key in content if key.casefold() in _NEVER_A_CLASS]
    if remarks and asked is None:
        raise DescriptionError(
            f"{name} has {remarks[0]!r} among its classes. If it is a class, pass the names of the classes; if it says "
            'something about the file, move the classes under "classes".'
        )
    return {key: value for key, value in content.items() if key not in remarks or key in (asked or ())}


def _entry(position: int, value: Any) -> tuple[str, list[str]]:
    """Read one object of a list."""
    if not isinstance(value, dict):
        raise DescriptionError(f"Entry {position} is {value!r:.60}; {_EXPECTED}.")
    names = [value[key] for key in _NAME_KEYS if isinstance(value.get(key), str)]
    texts = [value[key] for key in _TEXT_KEYS if key in value]
    if not names or not texts:
        raise DescriptionError(
            f"Entry {position} has the keys {', '.join(map(repr, value))}; "
            'expected {"name": ..., "descriptions": [...]}.'
        )
    return names[0], _sentences(names[0], texts[0])


def _sentences(name: str, value: Any) -> list[str]:
    """Flatten what stands under a class name."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        table = next((key for key in _TEXT_KEYS if key in value), None)
        if table is not None:
            for key in value:
                if key not in (table, *_NAME_KEYS) and key.casefold() not in _ABOUT_THE_FILE:
                    raise DescriptionError(
                        f"{name!r} has {key!r} beside {table!r}, which holds its sentences; move it in there, or out."
                    )
            return _sentences(name, value[table])
        return [sentence for inner in value.values() for sentence in _sentences(name, inner)]
    if isinstance(value, list):
        for sentence in value:
            if not isinstance(sentence, str):
                raise DescriptionError(f"A description of {name!r} is {sentence!r:.60}; expected a sentence.")
        return value
    raise DescriptionError(f"The descriptions of {name!r} must be a list of sentences, found {value!r:.60}.")


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuse an object with the same key twice: JSON would keep the last and lose the first."""
    content = dict(pairs)
    if len(content) != len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for position, key in enumerate(keys) if key in keys[:position])
        raise DescriptionError(f"The class {repeated!r} stands twice in the file; keep one list of sentences.")
    return content
