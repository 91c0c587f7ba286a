"""Class descriptions: which sentences say what a class looks like."""

import hashlib
import json
import logging
import os
import re
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from resilient_heads.errors import DescriptionError, DuplicateClassWarning
from resilient_heads.files import as_path, write_atomic
from resilient_heads.text.descriptions.layouts import parse, render

logger = logging.getLogger(__name__)

_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f\ud800-\udfff]")  # control characters, halves of characters
Descriptions = Mapping[str, Sequence[str]] | Sequence[Sequence[str]]


def normalized_name(name: str) -> str:
    """Reduce a class name to what two spellings of it share.

    >>> normalized_name("Apple_pie") == normalized_name("apple pie")
    True
    """
    return _spaced(name).casefold()


def is_writable_text(text: str) -> bool:
    """Whether a text can be encoded: a lone half of a surrogate pair, as JSON may hold it, cannot."""
    return not re.search("[\ud800-\udfff]", text)


def is_wrongly_decoded(text: str) -> bool:
    """Whether a text holds what no sentence does: control characters, replacement characters, half characters."""
    return "\N{REPLACEMENT CHARACTER}" in text or _CONTROL.search(text) is not None


def _spaced(name: str) -> str:
    """Return the name with single blanks where blanks, underscores or hyphens stood, its accents composed."""
    name = unicodedata.normalize("NFC", name)
    return re.sub(r"[\s_-]+", " ", name).strip()


@dataclass(frozen=True, slots=True)
class ClassDescriptions:
    """The sentences of each class, in class order.

    Attributes:
        class_names: C names.
        sentences: C tuples of one or more sentences; classes may have different numbers of them.
        provenance: Who wrote them and how, as names and text; no part of :attr:`sha256`.

    Raises:
        DescriptionError: Names and sentences do not fit together, or something cannot be encoded as UTF-8.
    """

    class_names: tuple[str, ...]
    sentences: tuple[tuple[str, ...], ...]
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, found in (("class_names", self.class_names), ("sentences", self.sentences)):
            if isinstance(found, str | bytes) or not isinstance(found, Sequence):
                raise DescriptionError(f"{what} must be a tuple, found {found!r:.60}; see ClassDescriptions.match.")
        if not isinstance(self.provenance, Mapping) or not all(
            isinstance(text, str) for text in (*self.provenance, *self.provenance.values())
        ):
            raise DescriptionError(f"provenance must map names to text, found {self.provenance!r:.60}.")
        if len(self.class_names) != len(self.sentences):
            raise DescriptionError(
                f"class_names and sentences must be as long as each other, found {self.class_names!r:.60} and "
                f"{len(self.sentences)} groups of sentences."
            )
        for name, own in zip(self.class_names, self.sentences, strict=True):
            listed = isinstance(own, Sequence) and not isinstance(own, str)
            if not isinstance(name, str) or not listed or not all(isinstance(text, str) for text in own):
                raise DescriptionError(f"The descriptions of {name!r} must be a tuple of sentences, found {own!r:.60}.")
        texts = [*self.class_names, *(text for own in self.sentences for text in own)]
        for text in (*texts, *self.provenance, *self.provenance.values()):
            if not is_writable_text(text):
                raise DescriptionError(f"Half a character makes {text!r:.80} no text that can be saved.")

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
        if isinstance(templates, str) or not isinstance(templates, Sequence):
            raise DescriptionError(f'templates must be a sequence such as ("a photo of a {{}}",), found {templates!r}.')
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
    def load(cls, path: str | os.PathLike[str], class_names: Sequence[str] | None = None) -> Self:
        """Read a JSON file in one of the layouts of :func:`resilient_heads.text.descriptions.layouts.parse`.

        Args:
            path: The file.
            class_names: C names to match the file's classes to; None takes the file's classes in the file's order,
                which is the order of the model's outputs only where somebody saw to it.

        Raises:
            DescriptionError: The file is of no such layout, or does not match the names.
            FileNotFoundError: There is no such file.
        """
        path = as_path(path, "path", error=DescriptionError)
        return cls.from_bytes(path.read_bytes(), class_names, name=str(path))

    @classmethod
    def from_bytes(cls, content: bytes, class_names: Sequence[str] | None = None, *, name: str = "the file") -> Self:
        """Read the content of a file; see :meth:`load`. ``name`` is what errors call it."""
        if not isinstance(content, bytes):
            raise DescriptionError(f"{name} must be given as bytes, found {content!r:.60}; of a path, use load.")
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DescriptionError(f"{name} is not UTF-8 text: {error}.") from error
        classes, provenance = parse(text, name=name, asked=class_names)
        if class_names is None:
            matched = cls.match([key for key, _ in classes], [own for _, own in classes])
        else:
            by_name: dict[str, list[str]] = {}
            for key, own in classes:
                if by_name.setdefault(key, own) != own:
                    raise DescriptionError(f"{name} describes the class {key!r} twice, and differently.")
            matched = cls.match(class_names, by_name)
        return cls(matched.class_names, matched.sentences, provenance)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a JSON file that :meth:`load` reads back, provenance included; atomically."""
        path = as_path(path, "path", error=DescriptionError)
        return write_atomic(path, render(list(zip(self.class_names, self.sentences, strict=True)), self.provenance))

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
        if not isinstance(name, str) or not name.strip() or _CONTROL.search(name):
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


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchReport:
    """How a mapping of descriptions fits class names.

    Attributes:
        key_of: Class name to the key that describes it; a class without one is not in it.
        missing: Class names that nothing describes.
        ambiguous: Class name to the several keys that could describe it.
        empty: Class names whose list of descriptions is empty.
        unused: Keys that describe no class.
    """

    key_of: Mapping[str, str]
    missing: tuple[str, ...]
    ambiguous: Mapping[str, tuple[str, ...]]
    empty: tuple[str, ...]
    unused: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every class has at least one description."""
        return not (self.missing or self.ambiguous or self.empty)


def match_report(class_names: Sequence[str], descriptions: Mapping[str, Sequence[str]]) -> MatchReport:
    """Say which class finds its descriptions under which key, and what is left over on either side.

    >>> match_report(["apple pie", "waffle"], {"Apple_pie": ["A pie."], "ramen": ["Soup."]}).missing
    ('waffle',)
    """
    if not isinstance(descriptions, Mapping):
        raise DescriptionError(f"descriptions must map names to sentences, found {descriptions!r:.60}.")
    _checked_names(class_names)
    by_name: dict[str, list[str]] = {}
    for key in descriptions:
        if not isinstance(key, str):
            raise DescriptionError(f"descriptions must map names to sentences; found the key {key!r}.")
        by_name.setdefault(normalized_name(key), []).append(key)
    key_of, missing, ambiguous = {}, [], {}
    for name in dict.fromkeys(class_names):
        keys = [name] if name in descriptions else by_name.get(normalized_name(name), [])
        if len(keys) == 1:
            key_of[name] = keys[0]
        elif keys:
            ambiguous[name] = tuple(keys)
        else:
            missing.append(name)
    taken = {*key_of.values(), *(key for keys in ambiguous.values() for key in keys)}
    return MatchReport(
        key_of=key_of,
        missing=tuple(missing),
        ambiguous=ambiguous,
        empty=tuple(name for name, key in key_of.items() if _is_empty(descriptions[key])),
        unused=tuple(key for key in descriptions if key not in taken),
    )


def _is_empty(sentences: object) -> bool:
    return isinstance(sentences, Sequence) and not sentences


def _match_by_name(names: Sequence[str], descriptions: Mapping[str, Sequence[str]]) -> list[tuple[str, ...]]:
    """Look each name up, forgiving its spelling."""
    report = match_report(names, descriptions)
    for name, keys in report.ambiguous.items():
        raise DescriptionError(f"The class {name!r} matches several descriptions: {_few(keys)}.")
    if report.missing:
        hint = f" Unused descriptions: {_few(report.unused)}." if report.unused else ""
        raise DescriptionError(
            f"No description matches {len(report.missing)} of {len(names)} classes ({_few(report.missing)}).{hint}"
        )
    if report.unused:
        logger.info("%d descriptions belong to no class: %s.", len(report.unused), _few(report.unused))
    return [_checked_sentences(report.key_of[name], descriptions[report.key_of[name]]) for name in names]


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
    """Return the sentences, each once and with single blanks, or say what is no sentence."""
    if isinstance(sentences, str) or not isinstance(sentences, Sequence):
        raise DescriptionError(f"The descriptions of {name!r} must be a list of sentences, found {sentences!r:.60}.")
    checked = []
    for sentence in sentences:
        if not isinstance(sentence, str) or not sentence.strip():
            raise DescriptionError(f"A description of {name!r} is {sentence!r:.60}; expected a non-empty sentence.")
        if is_wrongly_decoded(sentence):
            raise DescriptionError(
                f"A description of {name!r} was decoded wrongly: {sentence!r:.60}; save it as UTF-8."
            )
        checked.append(unicodedata.normalize("NFC", " ".join(sentence.split())))
    distinct = tuple(dict.fromkeys(checked))
    if len(distinct) < len(checked):
        # Kept twice, a sentence would weigh twice in the mean.
        logger.warning("%r has %d repeated descriptions; each counts once.", name, len(checked) - len(distinct))
    return distinct


def _fill(templates: Sequence[str], name: str) -> tuple[str, ...]:
    """Put the name into each template."""
    if isinstance(templates, str):
        raise DescriptionError(f"templates must be a sequence of strings; write templates=({templates!r},).")
    for template in templates:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise DescriptionError(f'A template needs exactly one {{}}, found {template!r}; try "a photo of a {{}}".')
    return tuple(template.replace("{}", name.replace("_", " ")) for template in templates)


def _few(names: Sequence[str]) -> str:
    """Return up to five names and how many are left out."""
    shown = ", ".join(repr(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
