"""``ClassDescriptions``: the sentences that say what each class looks like."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from resilient_heads.errors import DescriptionError
from resilient_heads.files import as_path, write_atomic
from resilient_heads.text.descriptions.layouts import parse, render
from resilient_heads.text.descriptions.matching import Descriptions, check_class_names, match_sentences
from resilient_heads.text.descriptions.texts import check_encodable, check_texts


@dataclass(frozen=True, slots=True)
class ClassDescriptions:
    """The sentences that describe each class, in class order.

    Attributes:
        class_names: C names.
        sentences: C tuples of one or more sentences. Classes may have different numbers of sentences.
        provenance: Who wrote the sentences and how, as a mapping of strings. :attr:`sha256` ignores it.

    Raises:
        DescriptionError: Names and sentences differ in number, or a value is not a string that UTF-8 can encode.

    Example:
        >>> import resilient_heads as rh
        >>> descriptions = rh.ClassDescriptions.match(
        ...     ["tabby cat", "red fox"],
        ...     {"Red_Fox": ["A red fox has a bushy tail."], "tabby cat": ["A tabby cat has dark stripes."]},
        ... )
        >>> descriptions.sentences
        (('A tabby cat has dark stripes.',), ('A red fox has a bushy tail.',))
    """

    class_names: tuple[str, ...]
    sentences: tuple[tuple[str, ...], ...]
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = check_texts("class_names", self.class_names, example='("cat", "dog")', error=DescriptionError)
        if isinstance(self.sentences, str) or not isinstance(self.sentences, Sequence):
            raise DescriptionError(f"sentences must be a tuple of tuples, found {self.sentences!r:.60}.")
        if len(names) != len(self.sentences):
            raise DescriptionError(
                f"{len(names)} class names but {len(self.sentences)} groups of sentences; pass one group for each "
                "class, or use ClassDescriptions.match."
            )
        sentences = tuple(
            check_texts(f"the sentences of {name!r}", texts, example='("It purrs.",)', error=DescriptionError)
            for name, texts in zip(names, self.sentences, strict=True)
        )
        if not isinstance(self.provenance, Mapping) or not all(
            isinstance(text, str) for text in (*self.provenance, *self.provenance.values())
        ):
            raise DescriptionError(f"provenance must map strings to strings, found {self.provenance!r:.60}.")
        for text in (*self.provenance, *self.provenance.values()):
            check_encodable("provenance", text, error=DescriptionError)
        object.__setattr__(self, "class_names", names)
        object.__setattr__(self, "sentences", sentences)

    @classmethod
    def match(
        cls,
        class_names: Sequence[str],
        descriptions: Descriptions | None,
        *,
        templates: Sequence[str] = (),
    ) -> Self:
        """Give each class its sentences. A mapping is matched by name, never by position.

        Args:
            class_names: C names in the order of the model's outputs.
            descriptions: One of

                - a mapping from name to sentences. Differences in case, blanks, underscores and hyphens are ignored,
                  and so are names that are not in ``class_names``;
                - a sequence of C lists of sentences in class order;
                - None, if ``templates`` alone describe the classes.
            templates: Format strings with one ``{}`` for the class name, such as ``"a photo of a {}"``. Each class gets
                them in addition to its descriptions.

        Raises:
            DescriptionError: A class has no sentence, a name has no match or several, or a value is not a string.
        """
        names = check_class_names(class_names)
        return cls(names, match_sentences(names, descriptions, templates))

    @classmethod
    def load(cls, path: str | os.PathLike[str], class_names: Sequence[str] | None = None) -> Self:
        """Read a JSON file of descriptions, in the layout of :meth:`save` or in one that other projects use.

        :func:`resilient_heads.text.descriptions.layouts.parse` lists the layouts.

        Args:
            path: The file.
            class_names: C names to match the classes of the file to. None keeps the classes and the order of the
                file; make sure that this is the order of the model's outputs.

        Raises:
            DescriptionError: The file has another layout or does not match the names.
            FileNotFoundError: The file does not exist.
        """
        path = as_path(path, "path", error=DescriptionError)
        return cls.from_bytes(path.read_bytes(), class_names, name=str(path))

    @classmethod
    def from_bytes(cls, content: bytes, class_names: Sequence[str] | None = None, *, name: str = "the file") -> Self:
        """Read the content of a file as :meth:`load` does; error messages call the file ``name``."""
        if not isinstance(content, bytes):
            raise DescriptionError(f"content must be bytes, found {content!r:.60}; to read a path, use load.")
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DescriptionError(f"{name} is not UTF-8 text: {error}.") from error
        classes, provenance = parse(text, name=name, class_names=class_names)
        if class_names is None:
            matched = cls.match([key for key, _ in classes], [texts for _, texts in classes])
        else:
            by_name: dict[str, list[str]] = {}
            for key, texts in classes:
                if by_name.setdefault(key, texts) != texts:
                    raise DescriptionError(f"{name} describes the class {key!r} twice, with different sentences.")
            matched = cls.match(class_names, by_name)
        return cls(matched.class_names, matched.sentences, provenance)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write names, sentences and provenance to a JSON file that :meth:`load` reads."""
        path = as_path(path, "path", error=DescriptionError)
        return write_atomic(path, render(self.class_names, self.sentences, self.provenance))

    @property
    def sha256(self) -> str:
        """Hex digest of names and sentences; it is the same on every machine."""
        text = json.dumps([self.class_names, self.sentences], ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("ascii")).hexdigest()
