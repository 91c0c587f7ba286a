"""JSON layouts of class descriptions: read those that other projects use, write one."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from resilient_heads.errors import DescriptionError

FORMAT = "resilient_heads.descriptions/1"
_NAME_KEYS = ("name", "class", "class_name", "label")
_TEXT_KEYS = ("descriptions", "sentences", "prompts", "texts")
# Keys beside a table of classes that are usually not classes.
_METADATA_KEYS = {
    "about", "author", "authors", "citation", "class_names", "classes", "comment", "created", "dataset", "date",
    "description", "format", "id", "info", "licence", "license", "meta", "metadata", "model", "names", "notes",
    "prompts", "provenance", "questions", "source", "sources", "templates", "title", "url", "version",
}  # fmt: skip
# Those of them that name nothing visible, and so are never a class unless the caller says so.
_NEVER_A_CLASS = {
    "class_names", "format", "licence", "license", "meta", "metadata", "names", "provenance", "questions", "templates",
    "version",
}  # fmt: skip
_EXPECTED = 'expected {"class name": ["sentence", ...]}'


def parse(
    text: str, *, name: str, class_names: Sequence[str] | None = None
) -> tuple[list[tuple[str, list[str]]], dict[str, str]]:
    """Return the classes of a file with their sentences, in file order, and the provenance if the file has one.

    These layouts are read:

    - ``{"class": ["sentence", ...]}`` and ``{"class": "sentence"}``;
    - ``{"class": {"question": ["sentence", ...] or "sentence"}}``, nested to any depth;
    - ``{"class": {"descriptions": [...], "source": ...}}`` (also ``sentences``, ``prompts``, ``texts``). Metadata keys
      beside the sentences are ignored; other keys are refused;
    - ``[{"name": "class", "descriptions": [...]}, ...]`` (also ``class``, ``class_name``, ``label``; ``sentences``,
      ``prompts``, ``texts``);
    - any of these below a key ``"descriptions"`` or ``"classes"``, as :meth:`ClassDescriptions.save` writes it.
      Metadata keys such as ``"meta"``, ``"source"`` or ``"questions"`` may stand beside it; other keys with text are
      refused, since they may be classes.

    Args:
        text: Content of the file.
        name: Name of the file in error messages.
        class_names: Class names that the caller wants. A key such as ``"meta"`` beside the classes is a class only if
            it is one of these names.

    Raises:
        DescriptionError: The text is not JSON, has another layout, has no classes, or repeats a key.
    """
    try:
        content = json.loads(text, object_pairs_hook=_refuse_repeated_keys)
    except (RecursionError, ValueError) as error:
        if isinstance(error, DescriptionError):
            raise
        raise DescriptionError(f"{name} is not a JSON file: {error}.") from error
    provenance = _provenance(content, name)
    table = _table_of_classes(content, name, class_names)
    try:
        if isinstance(table, dict):
            return [(key, _sentences(key, value)) for key, value in table.items()], provenance
        if isinstance(table, list):
            return [_list_entry(position, value) for position, value in enumerate(table)], provenance
    except RecursionError as error:
        raise DescriptionError(f"{name} nests its descriptions too deeply; {_EXPECTED}.") from error
    raise DescriptionError(f"{name} has a {type(table).__name__} at the top level; {_EXPECTED}.")


def render(class_names: Sequence[str], sentences: Sequence[Sequence[str]], provenance: Mapping[str, str]) -> bytes:
    """Return the content of a file that :func:`parse` reads. Equal content gives equal bytes."""
    content = {
        "format": FORMAT,
        "provenance": dict(sorted(provenance.items())),
        "classes": [
            {"name": name, "descriptions": list(texts)} for name, texts in zip(class_names, sentences, strict=True)
        ],
    }
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode("utf-8")


def _provenance(content: Any, name: str) -> dict[str, str]:
    """Return the provenance of a file in this library's own format, and refuse such a file without classes."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return {}
    provenance = content.get("provenance")
    if not isinstance(provenance, dict) or not all(isinstance(value, str) for value in provenance.values()):
        raise DescriptionError(f"The provenance in {name} must map strings to strings, found {provenance!r:.60}.")
    if not content.get("classes"):
        raise DescriptionError(f'{name} has no classes: "classes" is {content.get("classes")!r:.60}.')
    return provenance


def _table_of_classes(content: Any, name: str, class_names: Sequence[str] | None) -> Any:
    """Return the table below a key "classes" or "descriptions", or else the content without its metadata."""
    if not isinstance(content, dict):
        return content
    for key in ("classes", "descriptions"):
        # A class may be called "classes"; only an object or a list of objects is a table of classes.
        table = content.get(key)
        if isinstance(table, dict) or (isinstance(table, list) and table and isinstance(table[0], dict)):
            for other, value in content.items():
                has_text = isinstance(value, str | list | dict)
                if other != key and has_text and other.casefold() not in _METADATA_KEYS:
                    raise DescriptionError(
                        f"{name} has {other!r} beside {key!r}, which holds its classes. If {other!r} is a class, move "
                        f'it into {key!r}; if it is metadata, move it into "meta".'
                    )
            return table
    metadata = [key for key in content if key.casefold() in _NEVER_A_CLASS]
    if metadata and class_names is None:
        raise DescriptionError(
            f"{name} has {metadata[0]!r} among its classes. If it is a class, pass class_names; if it is metadata, "
            'move the classes into "classes".'
        )
    return {key: value for key, value in content.items() if key not in metadata or key in (class_names or ())}


def _list_entry(position: int, value: Any) -> tuple[str, list[str]]:
    """Read one object of a list of classes."""
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
    """Flatten the value of a class into a list of sentences."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        table = next((key for key in _TEXT_KEYS if key in value), None)
        if table is None:
            return [sentence for inner in value.values() for sentence in _sentences(name, inner)]
        for key in value:
            if key not in (table, *_NAME_KEYS) and key.casefold() not in _METADATA_KEYS:
                raise DescriptionError(
                    f"{name!r} has {key!r} beside {table!r}, which holds its sentences; move it into {table!r}, or "
                    "remove it."
                )
        return _sentences(name, value[table])
    if isinstance(value, list):
        for sentence in value:
            if not isinstance(sentence, str):
                raise DescriptionError(f"A description of {name!r} is {sentence!r:.60}; expected a sentence.")
        return value
    raise DescriptionError(f"The descriptions of {name!r} must be a list of sentences, found {value!r:.60}.")


def _refuse_repeated_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Build an object from its pairs; the JSON reader would silently keep the last of two equal keys."""
    content: dict[str, object] = {}
    for key, value in pairs:
        if key in content:
            raise DescriptionError(f"The key {key!r} occurs twice in one object; keep one list of sentences.")
        content[key] = value
    return content
