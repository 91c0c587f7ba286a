"""Descriptions from a language model: every question about every class, asked once, never lost."""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from queue import SimpleQueue

from tqdm import tqdm

from resilient_heads.errors import DescriptionError, LanguageModelError
from resilient_heads.files import as_path
from resilient_heads.text.descriptions.answers import Answers, usable
from resilient_heads.text.descriptions.class_descriptions import ClassDescriptions
from resilient_heads.text.descriptions.questions import QUESTIONS

logger = logging.getLogger(__name__)

LanguageModel = Callable[[str], str]
_LONGEST_WAIT = 60.0
_LAST_SECONDS = 2.0  # for answers under way when a run is broken off
# Asking again cannot help: the request is malformed, the key is wrong, or there is no such model.
_PERMANENT = frozenset({400, 401, 403, 404, 422})


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How a language model is asked.

    Attributes:
        concurrency: Questions under way at once.
        attempts: How often a question is asked before it is given up.
        wait: Seconds before the second attempt; each later one waits twice as long, up to a minute.
        progress: Show a progress bar on stderr.

    Raises:
        DescriptionError: A choice that makes no sense.
    """

    concurrency: int = 4
    attempts: int = 4
    wait: float = 1.0
    progress: bool = False

    def __post_init__(self) -> None:
        for name in ("concurrency", "attempts"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise DescriptionError(f"{name} must be a positive integer, found {value!r}.")
        if not isinstance(self.wait, int | float) or not isfinite(self.wait) or self.wait < 0:
            raise DescriptionError(f"wait must be a number of seconds, 0 or more, found {self.wait!r}.")


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
        llm: Prompt to answer; :class:`~resilient_heads.text.descriptions.openai_chat.OpenAIChat`, or any function. With
            ``concurrency`` above 1 it is called from several threads.
        questions: D templates with one ``{}`` for the class name.
        answers: A file of finished answers, one JSON object a line, with the model that gave it. It is read first and
            appended to, so that a run which was broken off asks only what is open. Answers to other questions or
            classes in it are left alone. One run at a time may use it.
        asking: How many at once, how often, how patiently.

    Returns:
        D descriptions a class. The provenance names the models that gave the answers (their ``id`` attributes, where
        they have one): several, if a file of answers was begun with another.

    Raises:
        DescriptionError: A question without a ``{}``, unusable names, a file of answers that is damaged or in use.
        LanguageModelError: Some questions stayed open after all attempts, or the model refused for good (a status 400,
            401, 403, 404 or 422), which ends the run at once. What was answered is in the file.

    Source: Pratt et al., *What does a platypus look like?*, ICCV 2023.
    """
    if asking is not None and not isinstance(asking, Asking):
        raise DescriptionError(f"asking must be an Asking, found {asking!r:.60}.")
    asking = asking or Asking()
    if not callable(llm):
        raise DescriptionError(f"llm must be a function from prompt to answer, found {llm!r:.60}.")
    for what, own in (("class_names", class_names), ("questions", questions)):
        if isinstance(own, str) or not isinstance(own, Sequence) or not all(isinstance(text, str) for text in own):
            raise DescriptionError(f"{what} must be a sequence of strings, found {own!r:.60}.")
    names = list(dict.fromkeys(class_names))
    prompts = ClassDescriptions.match(names, None, templates=questions)  # checks both, and fills the names in
    model = str(getattr(llm, "id", "") or getattr(llm, "__name__", type(llm).__name__))
    file = None if answers is None else as_path(answers, "answers", error=DescriptionError)
    with Answers(file) as store:
        todo = [
            (name, prompt)
            for name, own in zip(prompts.class_names, prompts.sentences, strict=True)
            for prompt in own
            if (name, prompt) not in store.found
        ]
        _ask_all(llm, model, todo, store, asking)
    given = [[store.found[name, prompt] for prompt in prompts.sentences[names.index(name)]] for name in class_names]
    matched = ClassDescriptions.match(class_names, [[answer.text for answer in own] for own in given])
    models = sorted({answer.model for own in given for answer in own})
    if models != [model]:
        logger.warning("The answers come from %s; the provenance names all of them.", ", ".join(models))
    provenance = {"written_by": ", ".join(models), "questions": json.dumps(list(questions))}
    return ClassDescriptions(matched.class_names, matched.sentences, provenance)


def _ask_all(llm: LanguageModel, model: str, todo: Sequence[tuple[str, str]], store: Answers, asking: Asking) -> None:
    """Ask what is open; raise LanguageModelError where something stays open."""
    failures: list[tuple[str, LanguageModelError]] = []
    stop = threading.Event()

    def ask(name: str, prompt: str) -> None:
        if stop.is_set():
            return
        try:
            store.add(name, prompt, _patiently(llm, prompt, asking, stop), model=model)
        except LanguageModelError as error:
            if _is_permanent(error):
                stop.set()
            failures.append((prompt, error))

    def work() -> None:
        while (item := waiting.get()) is not None:
            try:
                ask(*item)
            except BaseException as error:  # raised where the run was started
                done.put(error)
            else:
                done.put(None)

    count = min(asking.concurrency, len(todo))
    waiting: SimpleQueue[tuple[str, str] | None] = SimpleQueue()
    done: SimpleQueue[BaseException | None] = SimpleQueue()
    for item in (*todo, *[None] * count):
        waiting.put(item)
    # Daemons: neither an interrupt nor the end of the process waits for a server that stalls.
    workers = [threading.Thread(target=work, daemon=True) for _ in range(count)]
    with tqdm(total=len(todo), desc="Asking", unit="question", disable=not asking.progress) as bar:
        for worker in workers:
            worker.start()
        try:
            for _ in todo:
                problem = done.get()
                if problem is not None:
                    raise problem
                bar.update()
                if stop.is_set():
                    break
        finally:
            # Interrupted or not: nothing new is asked, nobody sits a back-off out, and a stalled server is left alone.
            stop.set()
            until = time.monotonic() + _LAST_SECONDS
            for worker in workers:
                worker.join(max(0.0, until - time.monotonic()))
    if not failures:
        return
    left = sum(item not in store.found for item in todo)
    where = f"; the others are in {store.path}, so the same call asks only these again" if store.path else ""
    prompt, error = next((own for own in failures if _is_permanent(own[1])), failures[0])
    if _is_permanent(error):
        raise LanguageModelError(
            f"The model refuses for good, so the run was ended at once. {left} of {len(todo)} questions stayed open"
            f"{where}. {prompt!r}: {error}"
        ) from error
    raise LanguageModelError(f"{left} of {len(todo)} questions stayed open{where}. {prompt!r}: {error}") from error


def _patiently(llm: LanguageModel, prompt: str, asking: Asking, stop: threading.Event) -> str:
    """Ask until an answer is usable, the model refuses for good, or the run is stopped."""
    reason: Exception | None = None
    for attempt in range(asking.attempts):
        if attempt and stop.wait(min(asking.wait * 2 ** (attempt - 1), _LONGEST_WAIT)):
            raise LanguageModelError(f"the run was stopped before another attempt ({reason})") from reason
        try:
            return usable(llm(prompt))
        except Exception as error:  # any function may be the model, and any error of it is a reason to ask again
            logger.info("%r failed: %s", prompt, error)
            reason = error
            if _is_permanent(error):
                raise LanguageModelError(str(error)) from error
    raise LanguageModelError(f"no usable answer after {asking.attempts} attempts ({reason})") from reason


def _is_permanent(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, carries a status that asking again does not change."""
    while error is not None:
        for holder in (error, getattr(error, "response", None)):
            if getattr(holder, "status_code", None) in _PERMANENT:
                return True
        error = error.__cause__
    return False
