"""Ask a language model many questions: several at once, with retries, interruptible at any time."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import NamedTuple

from tqdm import tqdm

from resilient_heads.checks import real_number, whole_number
from resilient_heads.errors import LanguageModelError
from resilient_heads.redaction import raise_redacted, redact, without_secrets
from resilient_heads.text.descriptions.answers import AnswerFile, clean_answer

logger = logging.getLogger(__name__)

LanguageModel = Callable[[str], str]
_MAX_WAIT = 60.0
_SECONDS_TO_FINISH = 2.0  # for requests that are running when a run is interrupted
# A retry cannot help: the request is malformed, the key is wrong, or the model does not exist.
_PERMANENT_STATUSES = frozenset({400, 401, 403, 404, 422})


class Question(NamedTuple):
    """A question about a class."""

    class_name: str
    prompt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AskOptions:
    """How to ask a language model.

    Attributes:
        concurrency: Number of questions to ask at once.
        attempts: Number of times to ask a question before giving up.
        wait: Seconds before the second attempt. The wait doubles before each later attempt, up to a minute.
        progress: Show a progress bar on stderr.

    Raises:
        ArgumentError: A value is out of its range.
    """

    concurrency: int = 4
    attempts: int = 4
    wait: float = 1.0
    progress: bool = False

    def __post_init__(self) -> None:
        whole_number("concurrency", self.concurrency, least=1)
        whole_number("attempts", self.attempts, least=1)
        real_number("wait", self.wait, least=0, below=float("inf"))


def ask_all(
    questions: Sequence[Question], llm: LanguageModel, *, model: str, file: AnswerFile, options: AskOptions
) -> None:
    """Ask every question and add the answers to ``file``, which records the name ``model`` with each.

    Raises:
        LanguageModelError: A question has no usable answer, or the model refused permanently.
    """
    failures: list[tuple[Question, LanguageModelError]] = []
    stop = threading.Event()

    def ask(question: Question) -> None:
        try:
            text = _ask_with_retries(llm, question.prompt, options, stop)
            file.add(question.class_name, question.prompt, text, model=model)
        except LanguageModelError as error:
            if _is_permanent(error):
                stop.set()
            failures.append((question, error))

    def work() -> None:
        while (question := waiting.get()) is not None:
            try:
                if not stop.is_set():
                    ask(question)
                done.put(None)
            except BaseException as error:  # the main thread raises it
                done.put(error)

    worker_count = min(options.concurrency, len(questions))
    waiting: SimpleQueue[Question | None] = SimpleQueue()
    done: SimpleQueue[BaseException | None] = SimpleQueue()
    for item in (*questions, *[None] * worker_count):
        waiting.put(item)
    # Daemon threads, not a ThreadPoolExecutor: the pool would wait for a stalled server when the process ends.
    workers = [threading.Thread(target=work, daemon=True) for _ in range(worker_count)]
    with tqdm(total=len(questions), desc="Asking", unit="question", disable=not options.progress) as bar:
        for worker in workers:
            worker.start()
        try:
            for _ in questions:
                if (problem := done.get()) is not None:
                    raise problem
                bar.update()
                if stop.is_set():
                    break
        finally:
            # Also after Ctrl-C: ask nothing new, end every wait, and leave a stalled request alone.
            stop.set()
            deadline = time.monotonic() + _SECONDS_TO_FINISH
            for worker in workers:
                worker.join(max(0.0, deadline - time.monotonic()))
    if failures:
        _raise_failure(failures, questions, file)


def _raise_failure(
    failures: Sequence[tuple[Question, LanguageModelError]], questions: Sequence[Question], file: AnswerFile
) -> None:
    """Raise one error for all failures; a permanent refusal comes first."""
    question, error = min(failures, key=lambda failure: not _is_permanent(failure[1]))
    cause = "The model refused permanently, so the run stopped. " if _is_permanent(error) else ""
    left = sum(one not in file.answers for one in questions)
    kept = f"; {file.path} keeps the other answers, so the same call asks only these again" if file.path else ""
    raise LanguageModelError(
        f"{cause}{left} of {len(questions)} questions have no answer{kept}. {question.prompt!r}: {error}"
    ) from error


def _ask_with_retries(llm: LanguageModel, prompt: str, options: AskOptions, stop: threading.Event) -> str:
    """Ask until the answer is usable, the model refuses permanently, or the run stops."""
    reason: BaseException | None = None
    for attempt in range(options.attempts):
        if attempt and stop.wait(min(options.wait * 2 ** (attempt - 1), _MAX_WAIT)):
            raise LanguageModelError(f"the run stopped before another attempt ({reason})") from reason
        try:
            return clean_answer(llm(prompt))
        except Exception as error:  # the model may be any function, and any error of it justifies another attempt
            logger.info("%r failed: %s", prompt, redact(str(error)))
            reason = without_secrets(error)
            if _is_permanent(error):
                raise_redacted(LanguageModelError(str(error)), error)
    raise LanguageModelError(f"no usable answer after {options.attempts} attempts ({reason})") from reason


def _is_permanent(error: BaseException | None) -> bool:
    """Whether an error or one of its causes has an HTTP status that a retry does not change."""
    while error is not None:
        for source in (error, getattr(error, "response", None)):
            if getattr(source, "status_code", None) in _PERMANENT_STATUSES:
                return True
        error = error.__cause__
    return False
