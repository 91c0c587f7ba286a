"""Generate descriptions with a language model."""

import json
import logging
import os
from collections.abc import Sequence

from resilient_heads.checks import instance_of
from resilient_heads.errors import ArgumentError, DescriptionError
from resilient_heads.files import as_path
from resilient_heads.text.descriptions.answers import AnswerFile
from resilient_heads.text.descriptions.asking import AskOptions, LanguageModel, Question, ask_all
from resilient_heads.text.descriptions.class_descriptions import ClassDescriptions
from resilient_heads.text.descriptions.questions import QUESTIONS
from resilient_heads.text.descriptions.texts import check_texts

logger = logging.getLogger(__name__)


def generate_descriptions(
    class_names: Sequence[str],
    llm: LanguageModel,
    *,
    questions: Sequence[str] = QUESTIONS,
    answers: str | os.PathLike[str] | None = None,
    options: AskOptions | None = None,
) -> ClassDescriptions:
    """Ask a language model questions about every class and use its answers as descriptions.

    Args:
        class_names: C names.
        llm: A function from prompt to answer, such as
            :class:`~resilient_heads.text.descriptions.openai_chat.OpenAIChat`. With ``concurrency`` above 1, several
            threads call it.
        questions: D questions with one ``{}`` for the class name.
        answers: File that keeps finished answers. If a run is interrupted, the same call reads this file and asks
            only the open questions. One run at a time may use the file.
        options: How many questions to ask at once, how often to retry, and whether to show progress.

    Returns:
        D descriptions for each class. The provenance names the models that gave the answers (their ``id`` attributes,
        or else the names of the functions); there are several if an earlier run used another model.

    Raises:
        ArgumentError: ``llm`` is not a function, or ``options`` is not an AskOptions.
        DescriptionError: A question without ``{}``, unusable names, or an ``answers`` file that is damaged or in use.
        LanguageModelError: Some questions have no usable answer after all attempts, or the model refused permanently
            (HTTP status 400, 401, 403, 404 or 422), which ends the run at once. The ``answers`` file keeps the answers
            given so far.

    Source: Pratt et al., *What does a platypus look like?*, ICCV 2023.

    Example:
        >>> import resilient_heads as rh
        >>> def llm(prompt):
        ...     return "It purrs." if "cat" in prompt else "It barks."
        >>> rh.generate_descriptions(["cat", "dog"], llm, questions=["How does a {} sound?"]).sentences
        (('It purrs.',), ('It barks.',))
    """
    options = AskOptions() if options is None else options
    instance_of("options", options, AskOptions, example="AskOptions(concurrency=2)")
    if not callable(llm):
        raise ArgumentError(f"llm must be a function from prompt to answer, found {llm!r:.60}.")
    check_texts("class_names", class_names, example='["cat", "dog"]', error=DescriptionError)
    check_texts("questions", questions, example='["What does a {} look like?"]', error=DescriptionError)
    prompts = ClassDescriptions.match(list(dict.fromkeys(class_names)), None, templates=questions)
    prompts_of = dict(zip(prompts.class_names, prompts.sentences, strict=True))
    model = str(getattr(llm, "id", "") or getattr(llm, "__name__", type(llm).__name__))
    path = None if answers is None else as_path(answers, "answers", error=DescriptionError)
    with AnswerFile.open(path) as file:
        open_questions = [
            Question(name, prompt)
            for name, asked in prompts_of.items()
            for prompt in asked
            if (name, prompt) not in file.answers
        ]
        ask_all(open_questions, llm, model=model, file=file, options=options)
    answered = [[file.answers[name, prompt] for prompt in prompts_of[name]] for name in class_names]
    matched = ClassDescriptions.match(class_names, [[answer.text for answer in given] for given in answered])
    models = sorted({answer.model for given in answered for answer in given})
    if models != [model]:
        logger.warning("The answers come from %s; the provenance names all of them.", ", ".join(models))
    provenance = {"written_by": ", ".join(models), "questions": json.dumps(list(questions))}
    return ClassDescriptions(matched.class_names, matched.sentences, provenance)
