import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_heads.errors import DescriptionError, LanguageModelError
from resilient_heads.text.descriptions.answers import Answers, usable
from resilient_heads.text.descriptions.class_descriptions import ClassDescriptions
from resilient_heads.text.descriptions.generate import Asking, generate_descriptions
from resilient_heads.text.descriptions.questions import QUESTIONS

FAST = Asking(concurrency=2, attempts=3, wait=0.01)


def answer(prompt: str) -> str:
    return f"An answer to: {prompt}\n"


def test_every_question_about_every_class() -> None:
    made = generate_descriptions(["cat", "dog"], answer, asking=FAST)
    assert made.class_names == ("cat", "dog")
    assert made.sentences[1] == tuple("An answer to: " + question.replace("{}", "dog") for question in QUESTIONS)
    assert made.provenance["written_by"] == "answer"
    assert json.loads(made.provenance["questions"]) == list(QUESTIONS)


def test_finished_answers_are_never_asked_again(tmp_path: Path) -> None:
    asked: list[str] = []

    def failing(prompt: str) -> str:
        asked.append(prompt)
        if "dog" in prompt:
            raise ConnectionError("the line is dead")
        return answer(prompt)

    file = tmp_path / "deep" / "answers.jsonl"
    with pytest.raises(LanguageModelError, match=r"1 of 2 questions stayed open.*asks only these again"):
        generate_descriptions(["cat", "dog"], failing, questions=["What is a {}?"], answers=file, asking=FAST)
    assert asked.count("What is a dog?") == 3
    with file.open("a") as stream:
        stream.write('{"class": "dog", "que')  # the run was killed while it wrote
    asked.clear()

    def counting(prompt: str) -> str:
        asked.append(prompt)
        return answer(prompt)

    made = generate_descriptions(["cat", "dog"], counting, questions=["What is a {}?"], answers=file, asking=FAST)
    assert asked == ["What is a dog?"]
    assert made.sentences[0] == ("An answer to: What is a cat?",)
    asked.clear()
    generate_descriptions(["dog"], counting, questions=["What is a {}?"], answers=file, asking=FAST)
    assert asked == []


def test_a_damaged_answers_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text('not json\n{"class": "a", "question": "b", "answer": "c"}\n')
    with pytest.raises(DescriptionError, match="Line 1"):
        generate_descriptions(["a"], answer, answers=file, asking=FAST)


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
def test_rubbish_is_no_description(rubbish: Any) -> None:
    with pytest.raises(LanguageModelError, match="no usable answer after 3 attempts"):
        generate_descriptions(["a"], lambda prompt: rubbish, questions=["{}?"], asking=FAST)


@given(st.text(max_size=40) | st.text("ab \x00\x07\x1b\x1c\x7f\x85\ufffd.", max_size=10))
def test_what_is_usable_is_accepted_for_good(text: str) -> None:
    try:
        line = usable(text)
    except LanguageModelError:
        return
    assert ClassDescriptions.match(["a"], [[line]]).sentences


def test_a_file_with_a_control_character_heals(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text(json.dumps({"class": "a", "question": "a?", "answer": "It rings \x07."}) + "\n")
    made = generate_descriptions(["a"], answer, questions=["{}?"], answers=file, asking=FAST)
    assert made.sentences == (("An answer to: a?",),)


@pytest.mark.parametrize("questions", [["no blank"], "one string {}", ["{} and {}"]])
def test_questions_are_checked(questions: Any) -> None:
    with pytest.raises(DescriptionError):
        generate_descriptions(["a"], answer, questions=questions, asking=FAST)


@pytest.mark.parametrize(
    "choice",
    [
        *({"class_names": names} for names in ("cat", iter(["a"]), None, [["a"]], {"a": 1})),
        {"questions": None},
        {"llm": None},
        {"asking": {}},
    ],
)
def test_what_cannot_be_asked_is_told_before_asking(choice: dict[str, Any]) -> None:
    def never(prompt: str) -> str:
        raise AssertionError(prompt)

    with pytest.raises(DescriptionError, match=f"{next(iter(choice))} must be"):
        generate_descriptions(**{"class_names": ["a"], "llm": never, **choice})


class ChatServer(ThreadingHTTPServer):
    """Plays a script, one act a request, then answers properly."""

    daemon_threads = True

    def __init__(self, script: list[str]) -> None:
        super().__init__(("127.0.0.1", 0), _Chat)
        self.script = script
        self.keys: list[str] = []
        self.requests: list[dict[str, Any]] = []
        self.under_way = self.most = 0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Chat(BaseHTTPRequestHandler):
    server: ChatServer

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_POST(self) -> None:
        server = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            act = server.script.pop(0) if server.script else "answer"
            server.keys.append(self.headers["Authorization"])
            server.requests.append(request)
            server.under_way += 1
            server.most = max(server.most, server.under_way)
        if act == "stall":
            time.sleep(1.5)
        text = "A fine sentence about " + request["messages"][0]["content"]
        bodies = {
            "rubbish": b"<html>no</html>",
            "hollow": b'{"choices": []}',
            "null": b'{"choices": [{"message": {}}]}',
        }
        body = bodies.get(act) or json.dumps(
            {"id": "1", "object": "chat.completion", "created": 1, "model": "m",
             "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}]}
        ).encode()  # fmt: skip
        time.sleep(0.02)
        with server.lock:
            server.under_way -= 1
        blanks = {"blanks": 3, "blanks for ever": 60}.get(act, 0)
        try:
            self.send_response(int(act) if act.isdigit() else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body) + blanks + (act == "cut")))
            self.end_headers()
            for _ in range(blanks):  # as servers do that keep a connection open while they think
                self.wfile.write(b"\n")
                time.sleep(0.05)
            self.wfile.write(body[:20] if act == "silence" else body)
            time.sleep(1.0 if act == "silence" else 0.0)
        except OSError:
            pass  # a client that has given up


@pytest.fixture
def chat(request: pytest.FixtureRequest) -> Iterator[ChatServer]:
    running = ChatServer(list(request.param))
    yield running
    running.shutdown()
    running.server_close()


@pytest.mark.parametrize(
    "chat", [["503", "429"], ["stall"], ["rubbish", "hollow", "null"], ["500", "rubbish", "stall"]], indirect=True
)
def test_a_server_that_fails_stalls_and_talks_rubbish(chat: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai", reason="needs the extra 'llm'")
    from resilient_heads.text.descriptions.openai_chat import OpenAIChat

    monkeypatch.setenv("MY_KEY", "secret")
    address = f"http://127.0.0.1:{chat.server_address[1]}/v1"
    llm = OpenAIChat("m", base_url=address, key_variable="MY_KEY", timeout=0.7, retries=2)
    made = generate_descriptions(
        ["cat", "dog", "cow"], llm, questions=["{}?", "{}!"], asking=Asking(concurrency=2, attempts=5, wait=0.01)
    )
    assert made.sentences[0] == ("A fine sentence about cat?", "A fine sentence about cat!")
    assert made.provenance["written_by"] == "m"
    assert set(chat.keys) == {"Bearer secret"}
    assert "secret" not in repr(llm)


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        (["blanks for ever"], r"m began to answer and had not ended 0.5 s later; allow more with timeout="),
        (["silence"], "m broke its answer off"),
        (["cut"], "m broke its answer off"),
        (["stall"], "m did not answer"),
    ],
    indirect=["chat"],
)
def test_an_answer_has_a_deadline(chat: ChatServer, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai", reason="needs the extra 'llm'")
    from resilient_heads.text.descriptions.openai_chat import OpenAIChat

    monkeypatch.setenv("OPENAI_API_KEY", "any")
    llm = OpenAIChat("m", base_url=f"http://127.0.0.1:{chat.server_address[1]}/v1", timeout=0.5)
    began = time.monotonic()
    with pytest.raises(LanguageModelError, match=message):
        llm("hello")
    assert time.monotonic() - began < 2.5  # blanks come for three seconds
    chat.script = ["blanks"]
    assert llm("again") == "A fine sentence about again"


@pytest.mark.parametrize("chat", [[]], indirect=True)
def test_concurrency_is_limited(chat: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai", reason="needs the extra 'llm'")
    from resilient_heads.text.descriptions.openai_chat import OpenAIChat

    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    llm = OpenAIChat("m", base_url=f"http://127.0.0.1:{chat.server_address[1]}/v1")
    generate_descriptions(list("abcdef"), llm, asking=Asking(concurrency=3))
    assert chat.most <= 3


@pytest.mark.parametrize("chat", [["401"] * 9], indirect=True)
def test_a_missing_or_refused_key_is_told(chat: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai", reason="needs the extra 'llm'")
    from resilient_heads.text.descriptions.openai_chat import OpenAIChat

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(LanguageModelError, match="OPENAI_API_KEY is not set"):
        OpenAIChat("m")
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    with pytest.raises(LanguageModelError, match="did not answer"):
        OpenAIChat("m", base_url=f"http://127.0.0.1:{chat.server_address[1]}/v1")("hello")


def test_an_answer_keeps_its_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "answers.jsonl"

    class Model:
        def __init__(self, name: str, knows: str) -> None:
            self.id, self.knows = name, knows

        def __call__(self, prompt: str) -> str:
            if self.knows not in prompt:
                raise ConnectionError("gone")
            return answer(prompt)

    with pytest.raises(LanguageModelError):
        generate_descriptions(["cat", "dog"], Model("small-1", "cat"), questions=["{}?"], answers=file, asking=FAST)
    made = generate_descriptions(["cat", "dog"], Model("big-2", "dog"), questions=["{}?"], answers=file, asking=FAST)
    assert made.provenance["written_by"] == "big-2, small-1"
    assert "The answers come from big-2, small-1" in caplog.text
    assert {json.loads(line)["model"] for line in file.read_text().splitlines()} == {"small-1", "big-2"}
    only = generate_descriptions(["dog"], Model("other-3", ""), questions=["{}?"], answers=file, asking=FAST)
    assert only.provenance["written_by"] == "big-2"
    file.write_text('{"class": "cat", "question": "cat?", "answer": "It purrs."}\n')
    made = generate_descriptions(["cat"], Model("big-2", "dog"), questions=["{}?"], answers=file, asking=FAST)
    assert made.provenance["written_by"] == "unknown"


class RefusalError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status_code = status


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_refusal_for_good_ends_the_run_and_keeps_what_was_answered(tmp_path: Path, status: int) -> None:
    file, asked = tmp_path / "answers.jsonl", []

    def llm(prompt: str) -> str:
        asked.append(prompt)
        if len(asked) > 2:
            raise RefusalError(status)
        return answer(prompt)

    patient = Asking(concurrency=1, attempts=4, wait=30.0)
    with pytest.raises(LanguageModelError, match=rf"for good.*8 of 10 questions stayed open; .*status {status}"):
        generate_descriptions(list("abcdefghij"), llm, questions=["{}?"], answers=file, asking=patient)
    assert len(asked) == 3
    assert len(file.read_text().splitlines()) == 2


def test_a_refusal_that_passes_is_asked_again() -> None:
    statuses = [429, 500, 503]

    def llm(prompt: str) -> str:
        if statuses:
            raise RefusalError(statuses.pop())
        return answer(prompt)

    asking = Asking(concurrency=1, attempts=4, wait=0.001)
    assert generate_descriptions(["a"], llm, questions=["{}?"], asking=asking).sentences


INTERRUPTED = """
import os, signal, sys, threading, time
from resilient_heads.text.descriptions.generate import Asking, generate_descriptions

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what runs in the background ignore it

def llm(prompt):
    if prompt == "a?":
        return "An answer."
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    raise ConnectionError

try:
    asking = Asking(concurrency=1, wait=60)
    generate_descriptions(["a", "b"], llm, questions=["{}?"], answers=sys.argv[1], asking=asking)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupt_does_not_wait_for_a_back_off(tmp_path: Path) -> None:
    began = time.monotonic()
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path / "answers.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert done.stdout.split() == ["interrupted"], done.stderr
    assert time.monotonic() - began < 40
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 1


STALLED = """
import os, signal, sys, threading, time
from resilient_heads.text.descriptions.generate import Asking, generate_descriptions

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what runs in the background ignore it

def llm(prompt):
    if prompt == "a?":
        return "An answer."
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    time.sleep(45)

try:
    generate_descriptions(["a", "b"], llm, questions=["{}?"], answers=sys.argv[1], asking=Asking(concurrency=1))
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupt_does_not_wait_for_a_stalled_server(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STALLED, str(tmp_path / "answers.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=35)
    assert done.stdout.split() == ["interrupted"], done.stderr
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 1


def test_an_answer_that_comes_too_late_is_not_written(tmp_path: Path) -> None:
    with Answers(tmp_path / "answers.jsonl") as store:
        store.add("a", "a?", "In time.", model="m")
    store.add("b", "b?", "Too late.", model="m")
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("path", [None, "answers.jsonl"])
def test_answers_are_opened_once(path: str | None, tmp_path: Path) -> None:
    store = Answers(None if path is None else tmp_path / path)
    with store, pytest.raises(DescriptionError, match="opened before; open them anew"):
        store.__enter__()
    with pytest.raises(DescriptionError, match="opened before"):
        store.__enter__()
    with Answers(store.path) as anew:  # the refusals took no lock
        anew.add("a", "a?", "In time.", model="m")


def test_answers_that_could_not_be_opened_can_be_tried_again(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text("not json\n\n")
    store = Answers(file)
    with pytest.raises(DescriptionError, match="Line 1"):
        store.__enter__()
    file.unlink()
    with store:
        store.add("a", "a?", "In time.", model="m")
    assert len(file.read_text().splitlines()) == 1


@pytest.mark.parametrize("choice", [{"retries": -1}, {"retries": "x"}, {"timeout": 0}, {"timeout": "1"}])
def test_a_client_is_set_up_with_sense(choice: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai", reason="needs the extra 'llm'")
    from resilient_heads.text.descriptions.openai_chat import OpenAIChat

    monkeypatch.setenv("OPENAI_API_KEY", "any")
    with pytest.raises(LanguageModelError, match=f"{next(iter(choice))} must be"):
        OpenAIChat("m", **choice)


HOLDING = """
import sys, time
from resilient_heads.text.descriptions.generate import generate_descriptions

def llm(prompt):
    print("asked", flush=True)
    time.sleep(60)

generate_descriptions(["a"], llm, questions=["{}?"], answers=sys.argv[1])
"""


def test_one_run_at_a_time_uses_a_file(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    command = [sys.executable, "-c", HOLDING, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "asked\n"
        try:
            with pytest.raises(DescriptionError, match=r"answers.jsonl is in use: another run"):
                generate_descriptions(["a"], answer, questions=["{}?"], answers=file, asking=FAST)
        finally:
            other.kill()  # which leaves the lock's file behind, and no lock
    assert generate_descriptions(["a"], answer, questions=["{}?"], answers=file, asking=FAST).sentences


@pytest.mark.parametrize(
    "choice",
    [{"concurrency": 0}, {"concurrency": 2.0}, {"attempts": 0}, {"wait": -1.0}, {"wait": float("nan")}, {"wait": "1"}],
)
def test_choices_that_make_no_sense_are_refused(choice: dict[str, Any]) -> None:
    with pytest.raises(DescriptionError, match=f"{next(iter(choice))} must be"):
        Asking(**choice)


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
def test_a_model_that_declines_has_not_answered(text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(LanguageModelError, match="the model declined"):
        generate_descriptions(["a"], lambda prompt: text, questions=["{}?"], asking=FAST)
    file = tmp_path / "answers.jsonl"  # of a run that took it for an answer
    file.write_text(json.dumps({"class": "a", "question": "a?", "answer": text}) + "\n")
    made = generate_descriptions(["a"], answer, questions=["{}?"], answers=file, asking=FAST)
    assert made.sentences == (("An answer to: a?",),)
    assert "is asked again" in caplog.text


@pytest.mark.parametrize(
    "text", ["As an adult, the dog is brown.", "In the photo I see a dog.", "Sorrel is a red horse."]
)
def test_a_description_is_no_refusal(text: str) -> None:
    assert generate_descriptions(["a"], lambda prompt: text, questions=["{}?"], asking=FAST).sentences == ((text,),)


@pytest.mark.parametrize("chat", [["404"] * 9], indirect=True)
def test_a_server_without_the_model_is_asked_once(chat: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai", reason="needs the extra 'llm'")
    from resilient_heads.text.descriptions.openai_chat import OpenAIChat

    monkeypatch.setenv("OPENAI_API_KEY", "any")
    llm = OpenAIChat("m", base_url=f"http://127.0.0.1:{chat.server_address[1]}/v1")
    with pytest.raises(LanguageModelError, match="refuses for good"):
        generate_descriptions(list("abcd"), llm, asking=Asking(concurrency=1, wait=30.0))
    assert len(chat.requests) == 1


@pytest.mark.parametrize("chat", [[]], indirect=True)
def test_settings_that_a_server_rejects_can_be_left_out(chat: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai", reason="needs the extra 'llm'")
    from resilient_heads.text.descriptions.openai_chat import OpenAIChat

    monkeypatch.setenv("OPENAI_API_KEY", "any")
    address = f"http://127.0.0.1:{chat.server_address[1]}/v1"
    OpenAIChat("m", base_url=address)("hello")
    OpenAIChat("m", base_url=address, max_tokens=None, temperature=None)("hello")
    assert [set(own) & {"max_tokens", "temperature"} for own in chat.requests] == [{"max_tokens", "temperature"}, set()]
