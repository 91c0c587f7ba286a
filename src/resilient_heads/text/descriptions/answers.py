"""Answers of a language model: which ones are usable, and the file that keeps them."""

import contextlib
import json
import logging
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from resilient_heads.errors import DescriptionError, LanguageModelError
from resilient_heads.files import locked
from resilient_heads.text.descriptions.texts import is_garbled

logger = logging.getLogger(__name__)

_MAX_CHARACTERS = 2000
_LINE_START = b'{"class": "'
# How a model declines: in the first person, or by calling itself an AI.
_REFUSAL = re.compile(
    r"(well, |unfortunately,? |but )*"
    r"((i'?m|i am) (very |so |really |truly )?(sorry|afraid|unable|not able|not sure|just an?|only an?|an ai)\b"
    r"|(my |sincere )*apologies\b|i (must )?apologi[sz]e\b|sorry\b"
    r"|i (can'?t|cannot|can not|could not|couldn'?t|won'?t|will not|don'?t|do not|am unable|must decline)\b"
    r"|as an? (ai|artificial|language|large language)\b)",
    re.IGNORECASE,
)
# What programs return in place of an answer.
_NO_SENTENCE = re.compile(
    r"(null|none|nan|undefined|true|false|n/?a|error)[.!]?$|(internal server |api |http )?error( code)?( \d+)?:",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A usable answer, and the name of the model that gave it."""

    text: str
    model: str


def clean_answer(answer: object) -> str:
    """Return an answer as one line.

    Raises:
        LanguageModelError: The answer is not a description: not text, not a sentence, markup, too long, or a refusal.
    """
    if not isinstance(answer, str):
        raise LanguageModelError(f"the answer is a {type(answer).__name__}, expected text")
    line = " ".join(answer.split())
    if is_garbled(line) or not any(character.isalpha() for character in line) or _NO_SENTENCE.match(line):
        raise LanguageModelError(f"the answer is not a sentence: {line!r:.60}")
    if line[0] in "{[<" or line.startswith("```"):
        raise LanguageModelError(f"the answer is markup, not a sentence: {line!r:.60}")
    if len(line) > _MAX_CHARACTERS:
        raise LanguageModelError(f"the answer has {len(line)} characters, expected at most {_MAX_CHARACTERS}")
    if _REFUSAL.match(line.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").lstrip("\"'* ")):
        raise LanguageModelError(f"the model declined: {line!r:.80}")
    return line


class AnswerFile:
    """Finished answers, kept in memory and appended to a file; :meth:`open` makes one.

    Attributes:
        path: The file, one JSON object a line; None keeps the answers in memory only.
        answers: (class name, question) to answer.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.answers: dict[tuple[str, str], Answer] = {}
        self._writing = threading.Lock()
        self._closed = False

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path | None) -> Iterator[Self]:
        """Read a file of answers, and keep other processes from using it inside the block.

        Raises:
            DescriptionError: Another process uses the file, or the file holds something else than answers.
        """
        file = cls(path)
        with contextlib.ExitStack() as stack:
            if path is not None:
                if path.is_dir():
                    raise DescriptionError(f"answers must be a file, but {path} is a folder; name a file in it.")
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    stack.enter_context(locked(f"{path}.lock", wait=False))
                except BlockingIOError as error:
                    raise DescriptionError(
                        f"{path} is in use: another run writes its answers there. Wait for that run, or name another "
                        "file."
                    ) from error
                file._read(path)
            try:
                yield file
            finally:
                with file._writing:
                    file._closed = True

    def add(self, name: str, question: str, text: str, *, model: str) -> None:
        """Append an answer to the file; drop it if the file is already closed and may belong to another run."""
        record = json.dumps({"class": name, "question": question, "answer": text, "model": model})
        with self._writing:
            if self._closed:
                return
            self.answers[name, question] = Answer(text, model)
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(record + "\n")
                    file.flush()
                    os.fsync(file.fileno())

    def _read(self, path: Path) -> None:
        """Read the file; remove a last line that a killed run left incomplete."""
        if not path.exists():
            return
        content = path.read_bytes()
        lines = content.split(b"\n")
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                key, text = (str(record["class"]), str(record["question"])), record["answer"]
                model = str(record.get("model", "unknown"))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                if number == len(lines) and line.startswith(_LINE_START[: len(line)]) and not line.endswith(b"}"):
                    logger.warning("%s ends with an incomplete answer of an earlier run; asking it again.", path)
                    os.truncate(path, len(content) - len(line))
                    return
                raise DescriptionError(
                    f"Line {number} of {path} is not an answer ({error!r}); remove the line, or name another file."
                ) from error
            try:
                self.answers[key] = Answer(clean_answer(text), model)
            except LanguageModelError as error:
                logger.warning("Line %d of %s is not usable and is asked again: %s.", number, path, error)
        if lines[-1].strip():  # the last answer is complete, only its newline is missing
            with path.open("ab") as file:
                file.write(b"\n")
