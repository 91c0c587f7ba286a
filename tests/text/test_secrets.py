"""No token and no password stands in anything that is printed, logged, saved or raised."""

import copy
import dataclasses
import logging
import pickle
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import resilient_heads as rh
from helpers.chat_server import ChatServer
from helpers.hub_server import HubServer
from resilient_heads.errors import ArgumentError, HubError, LanguageModelError, ResilientHeadsError
from resilient_heads.redaction import redact, without_secrets
from resilient_heads.text.descriptions.asking import AskOptions
from resilient_heads.text.descriptions.openai_chat import OpenAIChat
from resilient_heads.text.hub.files import fetch_file
from resilient_heads.text.hub.settings import HubSettings
from resilient_heads.text.hub.snapshots import fetch_snapshot, newest_commit

MARKER = "Zq7xVw93kLm2"
ENDPOINTS = (
    f"http://me:{MARKER}@127.0.0.1:9",
    f"http://{MARKER}@127.0.0.1:9",
    f"http://127.0.0.1:9/hub?token={MARKER}",
    f"http://127.0.0.1:9/?x=1&api_key={MARKER}",
    f"https://[{MARKER}@",
)


def shown(error: BaseException) -> str:
    """Return everything that a report of an error may show, hidden causes too."""
    texts, seen = [], set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            texts += [str(one), repr(one), repr(one.args), *traceback.format_exception(one)]
            waiting += [one.__cause__, one.__context__]
    return "\n".join(texts)


@pytest.fixture
def nothing_shows(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Run a call that fails; at the end, look for the marker in its error, and in all logs, warnings and files."""
    caplog.set_level(logging.DEBUG)

    def fails(call: Callable[[], object], kind: type[Exception] = ResilientHeadsError) -> str:
        with pytest.raises(kind) as caught:
            call()
        assert MARKER not in shown(caught.value)
        return str(caught.value)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield fails
    assert not [record for record in caplog.records if MARKER in record.getMessage() or MARKER in str(record.exc_text)]
    assert not [warning for warning in caught if MARKER in str(warning.message)]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if MARKER.encode() in path.read_bytes() or MARKER in str(path)]


SLOW = pytest.param("truncate", marks=pytest.mark.slow)


@pytest.mark.parametrize("fault", [401, 403, 404, 429, 500, "echo", "corrupt", SLOW, "gone"])
@pytest.mark.parametrize("place", ["argument", "environment"])
def test_no_failure_of_the_hub_shows_the_token(
    server: HubServer,
    settings: HubSettings,
    nothing_shows: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    fault: Any,
    place: str,
) -> None:
    settings = dataclasses.replace(settings, token=f"hf_{MARKER}" if place == "argument" else None)
    monkeypatch.setenv("HF_TOKEN", f"hf_{MARKER}")
    server.commit("owner/model", {"model.safetensors": b"weights", "manifest.json": b"{}"})
    server.fault = None if fault == "gone" else fault
    if fault == "gone":
        server.shutdown()
        server.server_close()
    if fault not in ("corrupt", "truncate"):
        nothing_shows(lambda: fetch_snapshot("owner/model", (), any_of=("a",), revision=None, settings=settings))
        nothing_shows(lambda: newest_commit("owner/none", revision=None, settings=settings)) if fault == 404 else None
        nothing_shows(lambda: rh.TextGuidedHead.from_pretrained("owner/model", hub=settings), HubError)
    nothing_shows(
        lambda: fetch_file("owner/model", "manifest.json", revision="main", sha256="0" * 64, settings=settings),
        HubError,
    )


@pytest.mark.parametrize("address", ENDPOINTS)
@pytest.mark.parametrize("place", ["endpoint", "HF_ENDPOINT", "base_url", "OPENAI_BASE_URL"])
def test_an_address_with_a_secret_is_refused_without_showing_it(
    nothing_shows: Callable[..., str], monkeypatch: pytest.MonkeyPatch, address: str, place: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    if place.isupper():
        monkeypatch.setenv(place, address)
    if place == "endpoint":
        said = nothing_shows(lambda: HubSettings(endpoint=address), ArgumentError)
    elif place == "HF_ENDPOINT":
        said = nothing_shows(lambda: HubSettings().address, ArgumentError)
    else:
        pytest.importorskip("openai", reason="needs the extra 'llm'")
        chosen = address if place == "base_url" else None
        said = nothing_shows(lambda: OpenAIChat("m", base_url=chosen), ArgumentError)
    assert place in said


@pytest.mark.parametrize("action", ["echo", "401", "403", "500", "rubbish", "hollow", "cut"])
def test_no_failure_of_a_language_model_shows_the_key(
    nothing_shows: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, action: str
) -> None:
    pytest.importorskip("openai", reason="needs the extra 'llm'")
    monkeypatch.setenv("OPENAI_API_KEY", MARKER)
    server = ChatServer([action] * 8)
    llm = OpenAIChat("m", base_url=server.url, timeout=2)
    nothing_shows(lambda: llm("hello"), LanguageModelError)
    options = AskOptions(attempts=2, wait=0.01, concurrency=1)
    answers = tmp_path / "answers.jsonl"
    nothing_shows(
        lambda: rh.generate_descriptions(["cat"], llm, questions=["{}?"], answers=answers, options=options),
        LanguageModelError,
    )
    assert server.keys[0] == f"Bearer {MARKER}"
    assert MARKER not in repr(llm) + str(llm)
    server.shutdown()
    server.server_close()


def test_a_function_that_raises_with_its_key_shows_it_nowhere(nothing_shows: Callable[..., str]) -> None:
    def llm(prompt: str) -> str:
        raise RuntimeError(f"POST https://me:{MARKER}@example.org/?key={MARKER} with Bearer {MARKER} failed")

    options = AskOptions(attempts=2, wait=0.01, concurrency=1)
    said = nothing_shows(lambda: rh.generate_descriptions(["cat"], llm, options=options), LanguageModelError)
    assert "https://***@example.org/?key=*** with Bearer *** failed" in said


def test_settings_show_and_keep_no_token(nothing_shows: Callable[..., str], tmp_path: Path) -> None:
    settings = HubSettings(token=f"hf_{MARKER}", endpoint="https://hub.example.org")
    texts = [repr(settings), str(settings), f"{settings}", repr(dataclasses.asdict(settings)), repr([settings.token])]
    assert not [text for text in texts if MARKER in text]
    assert MARKER.encode() not in pickle.dumps(settings)
    assert pickle.loads(pickle.dumps(settings)) == dataclasses.replace(settings, token=None)
    assert copy.deepcopy(settings).token == copy.copy(settings).token == f"hf_{MARKER}"
    assert dataclasses.replace(settings, offline=True).token == f"hf_{MARKER}"
    torch.save({"settings": settings}, tmp_path / "settings.pt")
    nothing_shows(lambda: HubSettings(token=[MARKER]), ArgumentError)
    nothing_shows(lambda: HubSettings(endpoint={MARKER: 1}), ArgumentError)


REDACTED = {
    "https://user:pass@host:8/a": "https://***@host:8/a",
    "proxy http://pass@host": "proxy http://***@host",
    "https://host/a?x=1&access_token=abc#top": "https://host/a?x=1&access_token=***#top",
    "?X-Amz-Signature=abc&Expires=3": "?X-Amz-Signature=***&Expires=3",
    "Authorization: Bearer abc.de1-ghi": "Authorization: Bearer ***",
    "basic dXNlcjpwYXNzMQ==": "basic ***",
    "hf_abcdefghijkl and sk-proj-abcdefgh": "hf_*** and sk-***",
    "https://user:p@ss@host/a": "https://***@host/a",
    "https://host/a#access_token=abcdef": "https://host/a#access_token=***",
    "{'api_key': 'abcdefgh', 'model': 'm'}": "{'api_key': '***', 'model': 'm'}",
    "X-Api-Key: abcdefgh": "X-Api-Key: ***",
    "ghp_abcdefghijkl, gsk_abcdefghijkl": "ghp_***, gsk_***",
    "KeyError: 'layer1.key.weight' has the password length": "KeyError: 'layer1.key.weight' has the password length",
    "mail me@example.org, basic ideas, a Bearer token": "mail me@example.org, basic ideas, a Bearer token",
    "no secret here": "no secret here",
}


@pytest.mark.parametrize("text", REDACTED)
def test_what_looks_like_a_secret_is_hidden(text: str) -> None:
    assert redact(text) == REDACTED[text]
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize("word", ["?", "&token", "://", "Bearer a", "password ", "hf_"])
def test_long_texts_take_no_quadratic_time(word: str) -> None:
    text = (word * 100_000)[:100_000]
    start = time.perf_counter()
    redact(text)
    assert time.perf_counter() - start < 10  # without bounds, minutes


def test_a_cause_without_a_secret_stays_itself() -> None:
    error = ValueError("no secret")
    assert without_secrets(error, "word", "") is error
    stand_in = without_secrets(ValueError("the word"), "word")
    assert (type(stand_in).__name__, str(stand_in)) == ("ValueError", "the ***")
