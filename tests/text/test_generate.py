import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_heads.errors import ArgumentError, DescriptionError, LanguageModelError
from resilient_heads.text.descriptions.answers import AnswerFile, clean_answer
from resilient_heads.text.descriptions.asking import AskOptions
from resilient_heads.text.descriptions.class_descriptions import ClassDescriptions
from resilient_heads.text.descriptions.generate import generate_descriptions
from resilient_heads.text.descriptions.questions import QUESTIONS

FAST = AskOptions(concurrency=2, attempts=3, wait=0.01)


def answer(prompt: str) -> str:
    return f"An answer to: {prompt}\n"


def test_every_question_is_asked_about_every_class() -> None:
    made = generate_descriptions(["cat", "dog"], answer, options=FAST)
    assert made.class_names == ("cat", "dog")
    assert made.sentences[1] == tuple("An answer to: " + question.replace("{}", "dog") for question in QUESTIONS)
    assert made.provenance["written_by"] == "answer"
    assert json.loads(made.provenance["questions"]) == list(QUESTIONS)


def test_finished_answers_are_not_asked_again(tmp_path: Path) -> None:
    asked: list[str] = []

    def failing(prompt: str) -> str:
        asked.append(prompt)
        if "dog" in prompt:
            raise ConnectionError("the line is dead")
        return answer(prompt)

    file = tmp_path / "deep" / "answers.jsonl"
    with pytest.raises(LanguageModelError, match=r"1 of 2 questions have no answer.*asks only these again"):
        generate_descriptions(["cat", "dog"], failing, questions=["What is a {}?"], answers=file, options=FAST)
    assert asked.count("What is a dog?") == 3
    with file.open("a") as stream:
        stream.write('{"class": "dog", "que')  # a run that was killed while it wrote
    asked.clear()

    def counting(prompt: str) -> str:
        asked.append(prompt)
        return answer(prompt)

    made = generate_descriptions(["cat", "dog"], counting, questions=["What is a {}?"], answers=file, options=FAST)
    assert asked == ["What is a dog?"]
    assert made.sentences[0] == ("An answer to: What is a cat?",)
    asked.clear()
    generate_descriptions(["dog"], counting, questions=["What is a {}?"], answers=file, options=FAST)
    assert asked == []


def test_a_damaged_answers_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text('not json\n{"class": "a", "question": "b", "answer": "c"}\n')
    with pytest.raises(DescriptionError, match="Line 1"):
        generate_descriptions(["a"], answer, answers=file, options=FAST)


@pytest.mark.parametrize(
    "rubbish",
    [
        "",
        "   ",
        "12345",
        "bell \x07 rings",
        "\x00a",
        "```json {} ```",
        "null",
        "None.",
        "Error: rate limit",
        "HTTP error 500: x",
        '{"error": 1}',
        "<html>",
        "x" * 3000,
        "\ufffd bad",
        "half \ud800",
        None,
        7,
    ],
)
def test_an_answer_that_is_no_sentence_is_not_used(rubbish: Any) -> None:
    with pytest.raises(LanguageModelError, match="no usable answer after 3 attempts"):
        generate_descriptions(["a"], lambda prompt: rubbish, questions=["{}?"], options=FAST)


@given(st.text(max_size=40) | st.text("ab \x00\x07\x1b\x1c\x7f\x85\ufffd.", max_size=10))
def test_a_clean_answer_is_a_valid_description(text: str) -> None:
    try:
        line = clean_answer(text)
    except LanguageModelError:
        return
    assert ClassDescriptions.match(["a"], [[line]]).sentences


def test_an_answer_with_control_characters_is_asked_again(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text(json.dumps({"class": "a", "question": "a?", "answer": "It rings \x07."}) + "\n")
    made = generate_descriptions(["a"], answer, questions=["{}?"], answers=file, options=FAST)
    assert made.sentences == (("An answer to: a?",),)


@pytest.mark.parametrize("questions", [["no blank"], "one string {}", ["{} and {}"]])
def test_questions_need_one_placeholder(questions: Any) -> None:
    with pytest.raises(DescriptionError):
        generate_descriptions(["a"], answer, questions=questions, options=FAST)


@pytest.mark.parametrize(
    "choice",
    [
        *({"class_names": names} for names in ("cat", iter(["a"]), None, [["a"]], {"a": 1})),
        {"questions": None},
        {"llm": None},
        {"options": {}},
    ],
)
def test_wrong_arguments_are_refused_before_asking(choice: dict[str, Any]) -> None:
    def never(prompt: str) -> str:
        raise AssertionError(prompt)

    with pytest.raises((ArgumentError, DescriptionError), match=f"{next(iter(choice))} must be"):
        generate_descriptions(**{"class_names": ["a"], "llm": never, **choice})


def test_the_provenance_names_every_model_that_answered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "answers.jsonl"

    class Model:
        def __init__(self, name: str, knows: str) -> None:
            self.id, self.knows = name, knows

        def __call__(self, prompt: str) -> str:
            if self.knows not in prompt:
                raise ConnectionError("gone")
            return answer(prompt)

    with pytest.raises(LanguageModelError):
        generate_descriptions(["cat", "dog"], Model("small-1", "cat"), questions=["{}?"], answers=file, options=FAST)
    made = generate_descriptions(["cat", "dog"], Model("big-2", "dog"), questions=["{}?"], answers=file, options=FAST)
    assert made.provenance["written_by"] == "big-2, small-1"
    assert "The answers come from big-2, small-1" in caplog.text
    assert {json.loads(line)["model"] for line in file.read_text().splitlines()} == {"small-1", "big-2"}
    only = generate_descriptions(["dog"], Model("other-3", ""), questions=["{}?"], answers=file, options=FAST)
    assert only.provenance["written_by"] == "big-2"
    file.write_text('{"class": "cat", "question": "cat?", "answer": "It purrs."}\n')
    made = generate_descriptions(["cat"], Model("big-2", "dog"), questions=["{}?"], answers=file, options=FAST)
    assert made.provenance["written_by"] == "unknown"


class RefusalError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status_code = status


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_permanent_refusal_ends_the_run_and_keeps_the_answers(tmp_path: Path, status: int) -> None:
    file, asked = tmp_path / "answers.jsonl", []

    def llm(prompt: str) -> str:
        asked.append(prompt)
        if len(asked) > 2:
            raise RefusalError(status)
        return answer(prompt)

    patient = AskOptions(concurrency=1, attempts=4, wait=30.0)
    with pytest.raises(LanguageModelError, match=rf"permanently.*8 of 10 questions have no answer; .*status {status}"):
        generate_descriptions(list("abcdefghij"), llm, questions=["{}?"], answers=file, options=patient)
    assert len(asked) == 3
    assert len(file.read_text().splitlines()) == 2


def test_a_temporary_refusal_is_retried() -> None:
    statuses = [429, 500, 503]

    def llm(prompt: str) -> str:
        if statuses:
            raise RefusalError(statuses.pop())
        return answer(prompt)

    options = AskOptions(concurrency=1, attempts=4, wait=0.001)
    assert generate_descriptions(["a"], llm, questions=["{}?"], options=options).sentences


INTERRUPTED = """
import os, signal, sys, threading, time
import resilient_heads as rh

signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore SIGINT by default

def llm(prompt):
    if prompt == "a?":
        return "An answer."
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    if sys.argv[2] == "stalled":
        time.sleep(45)
    raise ConnectionError

options = rh.text.AskOptions(concurrency=1, wait=60)
try:
    rh.generate_descriptions(["a", "b"], llm, questions=["{}?"], answers=sys.argv[1], options=options)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.slow
@pytest.mark.parametrize("server", ["refusing", "stalled"])
def test_an_interrupt_waits_neither_for_a_retry_nor_for_a_stalled_server(tmp_path: Path, server: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path / "answers.jsonl"), server]
    run = subprocess.run(command, capture_output=True, text=True, timeout=40)
    assert run.stdout.split() == ["interrupted"], run.stderr
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 1


def test_an_answer_after_the_end_of_the_run_is_not_written(tmp_path: Path) -> None:
    with AnswerFile.open(tmp_path / "answers.jsonl") as store:
        store.add("a", "a?", "In time.", model="m")
    store.add("b", "b?", "Too late.", model="m")
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 1


def test_an_answer_file_that_was_repaired_can_be_opened_again(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text("not json\n\n")
    with pytest.raises(DescriptionError, match="Line 1"), AnswerFile.open(file):
        pass
    file.unlink()
    with AnswerFile.open(file) as store:
        store.add("a", "a?", "In time.", model="m")
    assert len(file.read_text().splitlines()) == 1


HOLDING = """
import sys, time
from resilient_heads.text.descriptions.generate import generate_descriptions

def llm(prompt):
    print("asked", flush=True)
    time.sleep(60)

generate_descriptions(["a"], llm, questions=["{}?"], answers=sys.argv[1])
"""


def test_a_file_in_use_by_another_run_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    command = [sys.executable, "-c", HOLDING, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "asked\n"
        try:
            with pytest.raises(DescriptionError, match=r"answers.jsonl is in use: another run"):
                generate_descriptions(["a"], answer, questions=["{}?"], answers=file, options=FAST)
        finally:
            other.kill()  # which leaves the lock's file behind, and no lock
    assert generate_descriptions(["a"], answer, questions=["{}?"], answers=file, options=FAST).sentences


@pytest.mark.parametrize(
    "choice",
    [{"concurrency": 0}, {"concurrency": 2.0}, {"attempts": 0}, {"wait": -1.0}, {"wait": float("nan")}, {"wait": "1"}],
)
def test_options_out_of_range_are_refused(choice: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=f"{next(iter(choice))} must be"):
        AskOptions(**choice)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, I can't help with that.",
        "I\N{RIGHT SINGLE QUOTATION MARK}m sorry, but I cannot assist with that request.",
        "Sorry, I don't know what that is.",
        "As an AI language model, I have never seen a dog.",
        "I cannot describe this.",
        "Unfortunately, I am unable to describe it.",
        '"I apologize, but I won\'t do that."',
        "My apologies, no.",
    ],
)
def test_a_refusal_is_not_used_as_a_description(text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(LanguageModelError, match="the model declined"):
        generate_descriptions(["a"], lambda prompt: text, questions=["{}?"], options=FAST)
    file = tmp_path / "answers.jsonl"  # as an older version kept it
    file.write_text(json.dumps({"class": "a", "question": "a?", "answer": text}) + "\n")
    made = generate_descriptions(["a"], answer, questions=["{}?"], answers=file, options=FAST)
    assert made.sentences == (("An answer to: a?",),)
    assert "is asked again" in caplog.text


@pytest.mark.parametrize(
    "text", ["As an adult, the dog is brown.", "In the photo I see a dog.", "Sorrel is a red horse."]
)
def test_a_description_is_not_taken_for_a_refusal(text: str) -> None:
    assert generate_descriptions(["a"], lambda prompt: text, questions=["{}?"], options=FAST).sentences == ((text,),)
