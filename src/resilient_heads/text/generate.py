"""Descriptions from a language model: every question about every class, asked once, never lost."""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from resilient_heads.errors import DescriptionError, LanguageModelError
from resilient_heads.text.descriptions import ClassDescriptions
from resilient_heads.text.questions import QUESTIONS

logger = logging.getLogger(__name__)

LanguageModel = Callable[[str], str]
_LONGEST_ANSWER = 2000
_LONGEST_WAIT = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How a language model is asked.

    Attributes:
        concurrency: Questions under way at once.
        attempts: How often a question is asked before it is given up.
        wait: Seconds before the second attempt; each later one waits twice as long, up to a minute.
        progress: Show a progress bar on stderr.
    """

    concurrency: int = 4
    attempts: int = 4
    wait: float = 1.0
    progress: bool = False


def generate_descriptions(
    class_names: Sequence[str],
    llm: LanguageModel,
    *,
    questions: Sequence[str] = QUESTIONS,
    answers: str | os.PathLike[str] | None = None,
    asking: Asking | None = None,
) -> ClassDescriptions:
    """Ask a language model about every class; its answers are the descriptions.

    Args:
        class_names: C names.
        llm: Prompt to answer; :class:`~resilient_heads.text.openai_chat.OpenAIChat`, or any function. With
            ``concurrency`` above 1 it is called from several threads.
        questions: D templates with one ``{}`` for the class name.
        answers: A file of finished answers, one JSON object a line. It is read first and appended to, so that a run
            which was broken off asks only what is open. Answers to other questions or classes in it are left alone.
        asking: How many at once, how often, how patiently.

    Returns:
        D descriptions a class, with the model's name (its ``id`` attribute, if it has one) as provenance.

    Raises:
        DescriptionError: A question without a ``{}``, unusable names, or a damaged file of answers.
        LanguageModelError: Some questions stayed open after all attempts; what was answered is in the file.

    Source: Pratt et al., *What does a platypus look like?*, ICCV 2023.
    """
    asking = asking or Asking()
    names = list(dict.fromkeys(class_names))
    prompts = ClassDescriptions.match(names, None, templates=questions)  # checks both, and fills the names in
    store = _Answers(Path(answers) if answers is not None else None)
    todo = [
        (name, prompt)
        for name, own in zip(prompts.class_names, prompts.sentences, strict=True)
        for prompt in own
        if (name, prompt) not in store.found
    ]
    failures: list[tuple[str, Exception]] = []

    def ask(item: tuple[str, str]) -> None:
        try:
            store.add(*item, _patiently(llm, item[1], asking))
        except LanguageModelError as error:
            failures.append((item[1], error))

    with (
        ThreadPoolExecutor(asking.concurrency) as pool,
        tqdm(total=len(todo), desc="Asking", unit="question", disable=not asking.progress) as bar,
    ):
        for _ in pool.map(ask, todo):
            bar.update()
    if failures:
        where = f"; the others are in {answers}, so the same call asks only these again" if answers is not None else ""
        prompt, error = failures[0]
        raise LanguageModelError(f"{len(failures)} of {len(todo)} questions stayed open{where}. {prompt!r}: {error}")
    matched = ClassDescriptions.match(
        class_names,
        [[store.found[name, prompt] for prompt in prompts.sentences[names.index(name)]] for name in class_names],
    )
    provenance = {
        "written_by": str(getattr(llm, "id", "") or getattr(llm, "__name__", type(llm).__name__)),
        "questions": json.dumps(list(questions)),
    }
    return ClassDescriptions(matched.class_names, matched.sentences, provenance)


def _patiently(llm: LanguageModel, prompt: str, asking: Asking) -> str:
    """Ask until an answer is usable."""
    reason: Exception | None = None
    for attempt in range(max(1, asking.attempts)):
        if attempt:
            time.sleep(min(asking.wait * 2 ** (attempt - 1), _LONGEST_WAIT))
        try:
            return _usable(llm(prompt))
        except Exception as error:  # any function may be the model, and any error of it is a reason to ask again
            logger.info("%r failed: %s", prompt, error)
            reason = error
    raise LanguageModelError(f"no usable answer after {asking.attempts} attempts ({reason})") from reason


def _usable(answer: object) -> str:
    """Return the answer as one line, or say why it is no description."""
    if not isinstance(answer, str):
        raise LanguageModelError(f"the answer is a {type(answer).__name__}, expected text")
    line = " ".join(answer.split())
    if not any(character.isalpha() for character in line) or "\N{REPLACEMENT CHARACTER}" in line:
        raise LanguageModelError(f"the answer is no sentence: {line!r:.60}")
    if line[0] in "{[<":
        raise LanguageModelError(f"the answer is markup, not a sentence: {line!r:.60}")
    if len(line) > _LONGEST_ANSWER:
        raise LanguageModelError(f"the answer has {len(line)} characters, at most {_LONGEST_ANSWER} make a description")
    return line


_LINE_START = b'{"class": "'


class _Answers:
    """Finished answers, in memory and, line by line, in a file."""

    def __init__(self, path: Path | None) -> None:
        self.found: dict[tuple[str, str], str] = {}
        self._path = path
        self._lock = threading.Lock()
        if path is None or not path.exists():
            return
        content = path.read_bytes()
        lines = content.split(b"\n")
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                self.found[record["class"], record["question"]] = _usable(record["answer"])
            except (ValueError, KeyError, TypeError, RecursionError, LanguageModelError) as error:
                if number == len(lines) and line.startswith(_LINE_START[: len(line)]) and not line.endswith(b"}"):
                    logger.warning("%s ends in half an answer, from a run that was stopped; it is asked again.", path)
                    os.truncate(path, len(content) - len(line))
                    return
                raise DescriptionError(
                    f"Line {number} of {path} is no answer: {error!r}; remove it, or name another file."
                ) from error
        if lines[-1].strip():  # whole, but for its end
            with path.open("ab") as file:
                file.write(b"\n")

    def add(self, name: str, prompt: str, answer: str) -> None:
        """Keep an answer for good."""
        record = json.dumps({"class": name, "question": prompt, "answer": answer})
        with self._lock:
            self.found[name, prompt] = answer
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(record + "\n")
                    file.flush()
                    os.fsync(file.fileno())
