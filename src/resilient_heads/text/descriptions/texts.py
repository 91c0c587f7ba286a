"""Checks on class names and sentences, and the comparison of differently spelled class names."""

import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from resilient_heads.checks import normalized, strings
from resilient_heads.errors import DuplicateClassWarning

_SURROGATES = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f\ud800-\udfff]")


def check_texts(name: str, texts: Any, *, example: str, error: type[Exception]) -> tuple[str, ...]:
    """Return a sequence of strings as a tuple; raise ``error`` if it is something else or UTF-8 cannot encode it."""
    checked = strings(name, texts, example=example, may_be_empty=True, error=error)
    for position, text in enumerate(checked):
        check_encodable(f"{name}[{position}]", text, error=error)
    return checked


def check_encodable(name: str, text: str, *, error: type[Exception]) -> None:
    """Raise ``error`` if UTF-8 cannot encode the text: JSON may hold half of a surrogate pair."""
    if _SURROGATES.search(text):
        raise error(f"{name} was decoded wrongly and cannot be encoded as UTF-8: {text!r:.80}. Read its file as UTF-8.")


def is_garbled(text: str) -> bool:
    """Whether a text has control characters, replacement characters or half characters."""
    return "\N{REPLACEMENT CHARACTER}" in text or _CONTROL.search(text) is not None


def normalized_name(name: str) -> str:
    """Return what different spellings of a class name have in common: no case, underscores, hyphens or extra blanks.

    >>> normalized_name("Apple_pie") == normalized_name("apple pie")
    True
    """
    return _spaced(name).casefold()


def _spaced(name: str) -> str:
    """Return the name with composed accents, and single blanks in place of blanks, underscores and hyphens."""
    return re.sub(r"[\s_-]+", " ", normalized(name)).strip()


class NameIndex:
    """Find class names by exact spelling, or else by normalized spelling.

    >>> NameIndex(["apple_pie", "waffle"]).positions("Apple pie")
    [0]
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._exact: dict[str, list[int]] = {}
        self._normalized: dict[str, list[int]] = {}
        for position, name in enumerate(names):
            self._exact.setdefault(name, []).append(position)
            self._normalized.setdefault(normalized_name(name), []).append(position)

    def positions(self, name: str) -> list[int]:
        """Return the positions of all names that match."""
        return self._exact.get(name) or self._normalized.get(normalized_name(name), [])


def warn_about_duplicates(class_names: Sequence[str]) -> None:
    """Warn if two classes share a name: with the same descriptions they get the same embedding and the same logits.

    Names that differ in case are different: in ImageNet, "Cardigan" is a dog and "cardigan" is clothing.
    """
    first: dict[str, int] = {}
    for position, name in enumerate(class_names):
        earlier = first.setdefault(_spaced(name), position)
        if earlier != position:
            warnings.warn(
                f"Classes {earlier} and {position} share the name {name!r}: with the same descriptions, their logits "
                "are equal until training separates them.",
                DuplicateClassWarning,
                stacklevel=4,
            )


def first_few(names: Sequence[str]) -> str:
    """Return up to five names, and the number of the others.

    >>> first_few(["cat", "dog"])
    "'cat', 'dog'"
    """
    shown = ", ".join(repr(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
