import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from resilient_heads.errors import DescriptionError, LanguageModelError
from resilient_heads.text.generate import Asking, generate_descriptions
from resilient_heads.text.questions import QUESTIONS

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


@pytest.mark.parametrize("rubbish", ["", "   ", "12345", '{"error": 1}', "<html>", "x" * 3000, "\ufffd bad", None, 7])
def test_rubbish_is_no_description(rubbish: Any) -> None:
    with pytest.raises(LanguageModelError, match="no usable answer after 3 attempts"):
        generate_descriptions(["a"], lambda prompt: rubbish, questions=["{}?"], asking=FAST)


@pytest.mark.parametrize("questions", [["no blank"], "one string {}", ["{} and {}"]])
def test_questions_are_checked(questions: Any) -> None:
    with pytest.raises(DescriptionError):
        generate_descriptions(["a"], answer, questions=questions, asking=FAST)


class ChatServer(ThreadingHTTPServer):
    """Plays a script, one act a request, then answers properly."""

    daemon_threads = True

    def __init__(self, script: list[str]) -> None:
        super().__init__(("127.0.0.1", 0), _Chat)
        self.script = script
        self.keys: list[str] = []
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
        try:
            self.send_response(int(act) if act.isdigit() else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
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
    from resilient_heads.text.openai_chat import OpenAIChat

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


@pytest.mark.parametrize("chat", [[]], indirect=True)
def test_concurrency_is_limited(chat: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai", reason="needs the extra 'llm'")
    from resilient_heads.text.openai_chat import OpenAIChat

    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    llm = OpenAIChat("m", base_url=f"http://127.0.0.1:{chat.server_address[1]}/v1")
    generate_descriptions(list("abcdef"), llm, asking=Asking(concurrency=3))
    assert chat.most <= 3


@pytest.mark.parametrize("chat", [["401"] * 9], indirect=True)
def test_a_missing_or_refused_key_is_told(chat: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai", reason="needs the extra 'llm'")
    from resilient_heads.text.openai_chat import OpenAIChat

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(LanguageModelError, match="OPENAI_API_KEY is not set"):
        OpenAIChat("m")
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    with pytest.raises(LanguageModelError, match="did not answer"):
        OpenAIChat("m", base_url=f"http://127.0.0.1:{chat.server_address[1]}/v1")("hello")
