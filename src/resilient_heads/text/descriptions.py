"""Class descriptions: which sentences say what a class looks like."""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from resilient_heads.errors import DescriptionError, DuplicateClassWarning

Descriptions = Mapping[str, Sequence[str]] | Sequence[Sequence[str]]


def normalized_name(name: str) -> str:
    """Reduce a class name to what two spellings of it share.

    >>> normalized_name("Apple_pie") == normalized_name("apple pie")
    True
    """
    return _spaced(name).casefold()


def _spaced(name: str) -> str:
    """Return the name with single blanks where blanks, underscores or hyphens stood."""
    return re.sub(r"[\s_-]+", " ", name).strip()


@dataclass(frozen=True, slots=True)
class ClassDescriptions:
    """The sentences of each class, in class order.

    Attributes:
        class_names: C names.
        sentences: C tuples of one or more sentences; classes may have different numbers of them.
    """

    class_names: tuple[str, ...]
    sentences: tuple[tuple[str, ...], ...]

    @classmethod
    def match(
        cls,
        class_names: Sequence[str],
        descriptions: Descriptions | None,
        *,
        templates: Sequence[str] = (),
    ) -> Self:
        """Give each class its sentences; a mapping is matched by name, never by position.

        Args:
            class_names: C names in the order of the model's outputs.
            descriptions: A mapping from name to sentences (spelling differences in case, blanks, underscores and
                hyphens are forgiven; names beyond ``class_names`` are ignored), or a sequence of C lists in class
                order, or None when ``templates`` alone say what a class is.
            templates: Format strings with one ``{}`` for the class name, such as ``"a photo of a {}"``. They are
                added to the descriptions of every class.

        Raises:
            DescriptionError: A class without a sentence, names that do not match, or something that is no text.
        """
        names = _checked_names(class_names)
        filled = [_fill(templates, name) for name in names]
        if descriptions is None:
            if not templates:
                raise DescriptionError(
                    "Neither descriptions nor templates were given; pass one of them, "
                    'for example templates=("a photo of a {}",).'
                )
            found: list[tuple[str, ...]] = [()] * len(names)
        elif isinstance(descriptions, Mapping):
            found = _match_by_name(names, descriptions)
        else:
            found = _match_by_position(names, descriptions)
        sentences = tuple((*own, *extra) for own, extra in zip(found, filled, strict=True))
        empty = [name for name, own in zip(names, sentences, strict=True) if not own]
        if empty:
            raise DescriptionError(
                f"{len(empty)} of {len(names)} classes have no description ({_few(empty)}); "
                'give each at least one sentence, or pass templates=("a photo of a {}",).'
            )
        return cls(names, sentences)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a JSON object that maps class names to lists of sentences; the file's order is the class order.

        Raises:
            DescriptionError: The file is not such an object.
            FileNotFoundError: There is no such file.
        """
        path = Path(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise DescriptionError(f"{path} is not a JSON file: {error}.") from error
        if not isinstance(content, dict):
            raise DescriptionError(
                f'{path} holds a {type(content).__name__}; expected a JSON object: {{"class name": ["sentence", ...]}}.'
            )
        return cls.match(list(content), content)

    @property
    def sha256(self) -> str:
        """Digest of names and sentences, the same on every machine."""
        text = json.dumps([self.class_names, self.sentences], ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("ascii")).hexdigest()


def _checked_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """Return the names as a tuple, or say which one is no usable name."""
    if isinstance(class_names, str) or not isinstance(class_names, Sequence):
        raise DescriptionError(f"class_names must be a sequence of names, found {class_names!r:.60}.")
    if not class_names:
        raise DescriptionError("class_names is empty; expected one name for each class.")
    for position, name in enumerate(class_names):
        if not isinstance(name, str) or not name.strip():
            raise DescriptionError(f"class_names[{position}] must be a non-empty string, found {name!r}.")
    warn_about_duplicates(class_names)
    return tuple(class_names)


def warn_about_duplicates(class_names: Sequence[str]) -> None:
    """Warn when two classes share a name: their embeddings, and so their logits, tie.

    Case counts: ImageNet has both a Cardigan, which is a dog, and a cardigan.
    """
    first: dict[str, int] = {}
    for position, name in enumerate(class_names):
        earlier = first.setdefault(_spaced(name), position)
        if earlier != position:
            warnings.warn(
                f"Classes {earlier} and {position} share the name {name!r}: with the same descriptions their "
                "logits tie until training tells them apart.",
                DuplicateClassWarning,
                stacklevel=4,
            )


def _match_by_name(names: Sequence[str], descriptions: Mapping[str, Sequence[str]]) -> list[tuple[str, ...]]:
    """Look each name up, forgiving its spelling."""
    by_name: dict[str, list[str]] = {}
    for key in descriptions:
        if not isinstance(key, str):
            raise DescriptionError(f"descriptions must map names to sentences; found the key {key!r}.")
        by_name.setdefault(normalized_name(key), []).append(key)

    def key_of(name: str) -> str | None:
        if name in descriptions:
            return name
        keys = by_name.get(normalized_name(name), [])
        if len(keys) > 1:
            raise DescriptionError(f"The class {name!r} matches several descriptions: {_few(keys)}.")
        return keys[0] if keys else None

    keys_in_order = [key_of(name) for name in names]
    missing = [name for name, key in zip(names, keys_in_order, strict=True) if key is None]
    if missing:
        spare = [key for key in descriptions if key not in keys_in_order]
        hint = f" Unused descriptions: {_few(spare)}." if spare else ""
        raise DescriptionError(
            f"No description matches {len(missing)} of {len(names)} classes ({_few(missing)}).{hint}"
        )
    return [_checked_sentences(key, descriptions[key]) for key in keys_in_order if key is not None]


def _match_by_position(names: Sequence[str], descriptions: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Pair names and lists one to one."""
    if isinstance(descriptions, str) or not isinstance(descriptions, Sequence):
        raise DescriptionError(
            f"descriptions must map names to lists of sentences, found {type(descriptions).__name__}."
        )
    if len(descriptions) != len(names):
        raise DescriptionError(
            f"{len(names)} class names but {len(descriptions)} lists of descriptions; expected one list a class."
        )
    return [_checked_sentences(name, own) for name, own in zip(names, descriptions, strict=True)]


def _checked_sentences(name: str, sentences: Sequence[str]) -> tuple[str, ...]:
    """Return the sentences without blanks at their ends, or say what is no sentence."""
    if isinstance(sentences, str) or not isinstance(sentences, Sequence):
        raise DescriptionError(f"The descriptions of {name!r} must be a list of sentences, found {sentences!r:.60}.")
    checked = []
    for sentence in sentences:
        if not isinstance(sentence, str) or not sentence.strip():
            raise DescriptionError(f"A description of {name!r} is {sentence!r:.60}; expected a non-empty sentence.")
        checked.append(sentence.strip())
    return tuple(checked)


def _fill(templates: Sequence[str], name: str) -> tuple[str, ...]:
    """Put the name into each template."""
    if isinstance(templates, str):
        raise DescriptionError(f"templates must be a sequence of strings; write templates=({templates!r},).")
    for template in templates:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise DescriptionError(f'A template needs exactly one {{}}, found {template!r}; try "a photo of a {{}}".')
    return tuple(template.replace("{}", name.replace("_", " ")) for template in templates)


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuse an object with the same key twice: JSON would keep the last and lose the first."""
    content = dict(pairs)
    if len(content) != len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise DescriptionError(f"The class {repeated!r} stands twice in the file; keep one list of sentences.")
    return content


def _few(names: Sequence[str]) -> str:
    """Return up to five names and how many are left out."""
    shown = ", ".join(repr(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
