"""A language model's answers: which are usable, and the file that keeps them."""

import json
import logging
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from resilient_heads.errors import DescriptionError, LanguageModelError
from resilient_heads.text.descriptions.class_descriptions import is_wrongly_decoded

logger = logging.getLogger(__name__)

_LONGEST_ANSWER = 2000
_LINE_START = b'{"class": "'
_UNKNOWN = "unknown"
# How a model declines: in the first person, or for one that it calls an AI.
_REFUSAL = re.compile(
    r"(well, |unfortunately,? |but )*"
    r"((i'?m|i am) (very |so |really |truly )?(sorry|afraid|unable|not able|not sure|just an?|only an?|an ai)\b"
    r"|(my |sincere )*apologies\b|i (must )?apologi[sz]e\b|sorry\b"
    r"|i (can'?t|cannot|can not|could not|couldn'?t|won'?t|will not|don'?t|do not|am unable|must decline)\b"
    r"|as an? (ai|artificial|language|large language)\b)",
    re.IGNORECASE,
)
# What programs say in place of an answer.
_NO_SENTENCE = re.compile(
    r"(null|none|nan|undefined|true|false|n/?a|error)[.!]?$|(internal server |api |http )?error( code)?( \d+)?:",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Answer:
    """One usable answer, and the model that gave it."""

    text: str
    model: str


def usable(answer: object) -> str:
    """Return an answer as one line.

    Raises:
        LanguageModelError: It is no description: no text, no sentence, markup, too long, or a refusal.
    """
    if not isinstance(answer, str):
        raise LanguageModelError(f"the answer is a {type(answer).__name__}, expected text")
    line = " ".join(answer.split())
    if is_wrongly_decoded(line) or not any(character.isalpha() for character in line) or _NO_SENTENCE.match(line):
        raise LanguageModelError(f"the answer is no sentence: {line!r:.60}")
    if line[0] in "{[<" or line.startswith("```"):
        raise LanguageModelError(f"the answer is markup, not a sentence: {line!r:.60}")
    if len(line) > _LONGEST_ANSWER:
        raise LanguageModelError(f"the answer has {len(line)} characters, at most {_LONGEST_ANSWER} make a description")
    if _REFUSAL.match(line.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").lstrip("\"'* ")):
        raise LanguageModelError(f"the model declined: {line!r:.80}")
    return line


class Answers:
    """Finished answers, in memory and, line by line, in a file that one process at a time may use.

    Args:
        path: The file; None keeps nothing.

    Raises:
        DescriptionError: On entering: another process uses the file, it holds something else, or it was entered before.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.found: dict[tuple[str, str], Answer] = {}
        self._adding = threading.Lock()
        self._entered = self._over = False
        # The system drops the lock with the process that holds it, however that ends.
        self._lock = None if path is None else FileLock(f"{path}.lock")

    def __enter__(self) -> Self:
        if self._entered:
            raise DescriptionError(f"These answers were opened before; open them anew: Answers({str(self.path)!r}).")
        if self._lock is not None and self.path is not None:
            if self.path.is_dir():
                raise DescriptionError(f"{self.path} is a folder; name a file in it for the answers.")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(blocking=False)
            except Timeout as error:
                raise DescriptionError(
                    f"{self.path} is in use: another run is asking and writes its answers there. Wait for it, or name "
                    "another file."
                ) from error
            try:
                self._read(self.path)
            except BaseException:
                self._lock.release()
                raise
        self._entered = True
        return self

    def __exit__(self, *raised: object) -> None:
        with self._adding:
            self._over = True
        if self._lock is not None:
            self._lock.release()

    def add(self, name: str, prompt: str, text: str, *, model: str) -> None:
        """Keep an answer for good; one that comes after the end, when the file may be another run's, is dropped."""
        record = json.dumps({"class": name, "question": prompt, "answer": text, "model": model})
        with self._adding:
            if self._over:
                return
            self.found[name, prompt] = Answer(text, model)
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(record + "\n")
                    file.flush()
                    os.fsync(file.fileno())

    def _read(self, path: Path) -> None:
        """Read the file, and mend the end that a stopped run left."""
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
                model = str(record.get("model", _UNKNOWN))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                if number == len(lines) and line.startswith(_LINE_START[: len(line)]) and not line.endswith(b"}"):
                    logger.warning("%s ends in half an answer, from a run that was stopped; it is asked again.", path)
                    os.truncate(path, len(content) - len(line))
                    return
                raise DescriptionError(
                    f"Line {number} of {path} is no answer: {error!r}; remove it, or name another file."
                ) from error
            try:
                self.found[key] = Answer(usable(text), model)
            except LanguageModelError as error:
                logger.warning("Line %d of %s is asked again: %s.", number, path, error)
        if lines[-1].strip():  # whole, but for its end
            with path.open("ab") as file:
                file.write(b"\n")
