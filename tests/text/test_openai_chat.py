import time
from collections.abc import Iterator
from typing import Any

import pytest

from helpers.chat_server import ChatServer
from resilient_heads.errors import ArgumentError, LanguageModelError
from resilient_heads.text.descriptions.asking import AskOptions
from resilient_heads.text.descriptions.generate import generate_descriptions
from resilient_heads.text.descriptions.openai_chat import OpenAIChat

pytest.importorskip("openai", reason="needs the extra 'llm'")


@pytest.fixture
def chat(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    running = ChatServer(list(request.param))
    yield running
    running.shutdown()
    running.server_close()


@pytest.mark.parametrize(
    "chat", [["503", "429"], ["stall"], ["rubbish", "hollow", "null"], ["500", "rubbish", "stall"]], indirect=True
)
def test_every_question_is_answered_by_a_server_that_fails_at_first(
    chat: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    llm = OpenAIChat("m", base_url=chat.url, key_variable="MY_KEY", timeout=0.7, retries=2)
    options = AskOptions(concurrency=2, attempts=5, wait=0.01)
    made = generate_descriptions(["cat", "dog", "cow"], llm, questions=["{}?", "{}!"], options=options)
    assert made.sentences[0] == ("A fine sentence about cat?", "A fine sentence about cat!")
    assert made.provenance["written_by"] == "m"
    assert set(chat.keys) == {"Bearer secret"}
    assert "secret" not in repr(llm)


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        (["blanks for ever"], "m began to answer and did not finish within 0.5 s; increase timeout"),
        (["silence"], "m interrupted its answer"),
        (["cut"], "m interrupted its answer"),
        (["stall"], "m did not answer"),
    ],
    indirect=["chat"],
)
def test_an_answer_has_a_deadline(chat: ChatServer, message: str) -> None:
    llm = OpenAIChat("m", base_url=chat.url, timeout=0.5)
    began = time.monotonic()
    with pytest.raises(LanguageModelError, match=message):
        llm("hello")
    assert time.monotonic() - began < 2.5  # the server sends blanks for three seconds
    chat.script = ["blanks"]
    assert llm("again") == "A fine sentence about again"


@pytest.mark.parametrize("chat", [[]], indirect=True)
def test_a_truncated_answer_is_not_a_description(chat: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    chat.finish_reason = "length"
    with pytest.raises(LanguageModelError, match=r"did not complete its answer \(length\); increase max_tokens"):
        OpenAIChat("m", base_url=chat.url)("How does a fox look?")


@pytest.mark.parametrize("chat", [[]], indirect=True)
def test_concurrency_is_limited(chat: ChatServer) -> None:
    generate_descriptions(list("abcdef"), OpenAIChat("m", base_url=chat.url), options=AskOptions(concurrency=3))
    assert chat.max_running <= 3


def test_a_missing_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(LanguageModelError, match="OPENAI_API_KEY is not set"):
        OpenAIChat("m")


@pytest.mark.parametrize("chat", [["401"] * 9], indirect=True)
def test_a_key_that_the_server_refuses_is_reported(chat: ChatServer) -> None:
    with pytest.raises(LanguageModelError, match=r"did not answer.*401"):
        OpenAIChat("m", base_url=chat.url)("hello")


@pytest.mark.parametrize("choice", [{"retries": -1}, {"retries": "x"}, {"timeout": 0}, {"timeout": "1"}])
def test_options_out_of_range_are_refused(choice: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    with pytest.raises(ArgumentError, match=f"{next(iter(choice))} must be"):
        OpenAIChat("m", **choice)


@pytest.mark.parametrize("chat", [["404"] * 9], indirect=True)
def test_a_server_without_the_model_is_asked_once(chat: ChatServer) -> None:
    options = AskOptions(concurrency=1, wait=30.0)
    with pytest.raises(LanguageModelError, match="refused permanently"):
        generate_descriptions(list("abcd"), OpenAIChat("m", base_url=chat.url), options=options)
    assert len(chat.requests) == 1


@pytest.mark.parametrize("chat", [[]], indirect=True)
def test_settings_that_a_server_rejects_can_be_omitted(chat: ChatServer) -> None:
    OpenAIChat("m", base_url=chat.url)("hello")
    OpenAIChat("m", base_url=chat.url, max_tokens=None, temperature=None)("hello")
    optional = {"max_tokens", "temperature"}
    assert [set(request) & optional for request in chat.requests] == [optional, set()]
