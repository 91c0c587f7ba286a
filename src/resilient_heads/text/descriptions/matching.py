"""Match descriptions to class names."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from resilient_heads.checks import normalized
from resilient_heads.errors import DescriptionError
from resilient_heads.text.descriptions.texts import NameIndex, check_texts, first_few, is_garbled, warn_about_duplicates

logger = logging.getLogger(__name__)

Descriptions = Mapping[str, Sequence[str]] | Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchReport:
    """How a mapping of descriptions fits class names.

    Attributes:
        key_of: Class name to the key that describes it, for each class that has exactly one.
        missing: Class names that no key describes.
        ambiguous: Class name to its keys, for each class that several keys could describe.
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
    """Report which descriptions belong to which class, and what is missing or unused.

    Args:
        class_names: C names.
        descriptions: Name to sentences. Differences in case, blanks, underscores and hyphens are ignored.

    Raises:
        DescriptionError: ``class_names`` or ``descriptions`` has the wrong type.

    Example:
        >>> import resilient_heads as rh
        >>> descriptions = {"Apple_pie": ["A pie."], "ramen": ["A soup."]}
        >>> report = rh.text.match_report(["apple pie", "waffle"], descriptions)
        >>> report.missing, report.unused
        (('waffle',), ('ramen',))
    """
    if not isinstance(descriptions, Mapping):
        raise DescriptionError(
            f'descriptions must be a mapping such as {{"cat": ["It purrs."]}}, found {descriptions!r:.60}.'
        )
    return _report(check_class_names(class_names), descriptions)


def _report(names: Sequence[str], descriptions: Mapping[str, Sequence[str]]) -> MatchReport:
    keys = check_texts("the keys of descriptions", list(descriptions), example='["cat"]', error=DescriptionError)
    index = NameIndex(keys)
    key_of: dict[str, str] = {}
    missing: list[str] = []
    ambiguous: dict[str, tuple[str, ...]] = {}
    for name in dict.fromkeys(names):
        matching = tuple(keys[position] for position in index.positions(name))
        if len(matching) == 1:
            key_of[name] = matching[0]
        elif matching:
            ambiguous[name] = matching
        else:
            missing.append(name)
    used = {*key_of.values(), *(key for candidates in ambiguous.values() for key in candidates)}
    return MatchReport(
        key_of=key_of,
        missing=tuple(missing),
        ambiguous=ambiguous,
        empty=tuple(
            name
            for name, key in key_of.items()
            if isinstance(descriptions[key], Sequence) and not len(descriptions[key])
        ),
        unused=tuple(key for key in keys if key not in used),
    )


def match_sentences(
    names: Sequence[str], descriptions: Descriptions | None, templates: Sequence[str]
) -> tuple[tuple[str, ...], ...]:
    """Return each class's descriptions and filled templates; the arguments are those of ClassDescriptions.match."""
    templates = check_texts("templates", templates, example='("a photo of a {}",)', error=DescriptionError)
    for template in templates:
        if template.count("{}") != 1:
            raise DescriptionError(f'A template needs exactly one {{}}, found {template!r}; try "a photo of a {{}}".')
    if descriptions is None and not templates:
        raise DescriptionError('Pass descriptions, templates, or both; for example templates=("a photo of a {}",).')
    if descriptions is None:
        described: list[tuple[str, ...]] = [()] * len(names)
    elif isinstance(descriptions, Mapping):
        described = _match_by_name(names, descriptions)
    else:
        described = _match_by_position(names, descriptions)
    sentences = tuple(
        (*texts, *(template.replace("{}", name.replace("_", " ")) for template in templates))
        for name, texts in zip(names, described, strict=True)
    )
    empty = [name for name, texts in zip(names, sentences, strict=True) if not texts]
    if empty:
        raise DescriptionError(
            f"{len(empty)} of {len(names)} classes have no description ({first_few(empty)}); "
            'give each class at least one sentence, or pass templates=("a photo of a {}",).'
        )
    return sentences


def check_class_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """Return the class names as a tuple; raise DescriptionError if there are none, or one is not usable."""
    names = check_texts("class_names", class_names, example='["cat", "dog"]', error=DescriptionError)
    if not names:
        raise DescriptionError("class_names is empty; pass one name for each class.")
    for position, name in enumerate(names):
        if not name.strip() or is_garbled(name):
            raise DescriptionError(
                f"class_names[{position}] must be a non-empty string of printable characters, found {name!r}."
            )
    warn_about_duplicates(names)
    return names


def _match_by_name(names: Sequence[str], descriptions: Mapping[str, Sequence[str]]) -> list[tuple[str, ...]]:
    report = _report(names, descriptions)
    for name, keys in report.ambiguous.items():
        raise DescriptionError(f"The class {name!r} matches several descriptions ({first_few(keys)}); keep one.")
    if report.missing:
        hint = f" Unused descriptions: {first_few(report.unused)}." if report.unused else ""
        raise DescriptionError(
            f"No description matches {len(report.missing)} of {len(names)} classes ({first_few(report.missing)}).{hint}"
        )
    if report.unused:
        logger.info("%d descriptions match no class: %s.", len(report.unused), first_few(report.unused))
    return [_clean(name, descriptions[report.key_of[name]]) for name in names]


def _match_by_position(names: Sequence[str], descriptions: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    if isinstance(descriptions, str) or not isinstance(descriptions, Sequence):
        raise DescriptionError(
            'descriptions must be a mapping such as {"cat": ["It purrs."]} or a sequence of C lists of sentences, '
            f"found {descriptions!r:.60}."
        )
    if len(descriptions) != len(names):
        raise DescriptionError(
            f"{len(names)} class names but {len(descriptions)} lists of descriptions; pass one list for each class."
        )
    return [_clean(name, texts) for name, texts in zip(names, descriptions, strict=True)]


def _clean(name: str, sentences: Sequence[str]) -> tuple[str, ...]:
    """Return the distinct sentences of a class, with single blanks and composed accents."""
    if isinstance(sentences, str) or not isinstance(sentences, Sequence):
        raise DescriptionError(f"The descriptions of {name!r} must be a list of sentences, found {sentences!r:.60}.")
    cleaned = []
    for sentence in sentences:
        if not isinstance(sentence, str) or not sentence.strip():
            raise DescriptionError(f"A description of {name!r} is {sentence!r:.60}; expected a non-empty sentence.")
        if is_garbled(sentence):
            raise DescriptionError(
                f"A description of {name!r} was decoded wrongly: {sentence!r:.60}; save the file as UTF-8."
            )
        cleaned.append(normalized(" ".join(sentence.split())))
    distinct = tuple(dict.fromkeys(cleaned))
    if len(distinct) < len(cleaned):  # a repeated sentence would have twice the weight in the mean
        logger.warning("%r has %d repeated descriptions; each counts once.", name, len(cleaned) - len(distinct))
    return distinct
