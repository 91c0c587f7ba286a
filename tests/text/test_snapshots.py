"""Model repositories from the Hub: pinned, from the cache first, and never waited for without need."""

import dataclasses
import socket
import time
from pathlib import Path

import pytest

from helpers.hub_server import HubServer
from resilient_heads.errors import HubError
from resilient_heads.text.hub.client import HubSettings, check_reachable
from resilient_heads.text.hub.snapshots import fetch_snapshot, newest_commit

FILES = {"config.json": b"{}", "model.safetensors": b"weights", "other.safetensors": b"more weights", "README.md": b"x"}


def fetch(settings: HubSettings | None, revision: str | None = None, *, offline: bool = False) -> Path:
    names = ("none.safetensors", "model.safetensors", "other.safetensors")
    return fetch_snapshot(
        "owner/model", ("config.json",), any_of=names, revision=revision, offline=offline, settings=settings
    )


def test_only_what_is_needed_is_taken(server: HubServer, settings: HubSettings) -> None:
    commit = server.commit("owner/model", FILES)
    folder = fetch(settings)
    assert folder.name == commit == newest_commit("owner/model", revision=None, settings=settings)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("fault", "reason", "temporary"),
    [
        (503, "the Hub answered 503; try again later", True),
        (500, "the Hub answered 500; try again later", True),
        (404, "no such", False),
        (401, "access is refused", False),
        (403, "access is refused", False),
    ],
)
def test_refusals_are_told_at_once(
    server: HubServer, settings: HubSettings, fault: int, reason: str, temporary: bool
) -> None:
    server.commit("owner/model", FILES)
    server.fault = fault
    began = time.monotonic()
    with pytest.raises(HubError, match=reason) as caught:
        fetch(settings)
    assert time.monotonic() - began < 3
    assert caught.value.temporary is temporary


def test_a_cached_commit_needs_no_hub(server: HubServer, settings: HubSettings) -> None:
    commit = server.commit("owner/model", FILES)
    fetch(settings)
    server.commit("owner/model", {"model.safetensors": b"newer"})
    server.requests.clear()
    server.fault = 404
    assert (fetch(settings, commit) / "model.safetensors").read_bytes() == b"weights"
    assert server.requests == []


def test_a_commit_that_is_cached_in_part_is_completed(server: HubServer, settings: HubSettings) -> None:
    commit = server.commit("owner/model", FILES)
    (fetch(settings) / "model.safetensors").unlink()
    assert (fetch(settings, commit) / "model.safetensors").read_bytes() == b"weights"


def test_what_is_cached_serves_while_the_hub_is_out_of_order(
    server: HubServer, settings: HubSettings, caplog: pytest.LogCaptureFixture
) -> None:
    commit = server.commit("owner/model", FILES)
    fetch(settings)
    server.commit("owner/model", {"model.safetensors": b"newer"})
    server.fault = 503
    assert fetch(settings).name == commit
    assert "answered 503" in caplog.text
    assert f"cached of it, commit {commit}" in caplog.text
    assert newest_commit("owner/model", revision=None, settings=settings) == commit
    server.fault = 404  # gone on purpose, so nothing of it is used unasked
    with pytest.raises(HubError):
        fetch(settings)


@pytest.mark.parametrize("hub", ["none", "default", "given"])
def test_offline_says_so_however_it_was_asked_for(
    server: HubServer, settings: HubSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    chosen = {"none": None, "default": HubSettings(), "given": settings}[hub]
    with pytest.raises(HubError, match="not in the cache, and offline mode forbids"):
        fetch(chosen, offline=True)
    assert newest_commit("owner/model", revision=None, settings=HubSettings(offline=True)) == ""
    assert server.requests == []


def test_an_unwritable_cache_is_gone_round(
    server: HubServer, settings: HubSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.commit("owner/model", FILES)
    (tmp_path / "file").write_text("in the way")
    folder = fetch(dataclasses.replace(settings, cache_dir=tmp_path / "file" / "cache"))
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert "cannot be written" in caplog.text


def test_an_address_that_leads_nowhere_takes_no_time_from_another(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen(0)
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(hole.getsockname())
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        targets = [hole.getsockname(), ("127.0.0.1", server.server_address[1])]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(*kind, target) for target in targets])
        check_reachable("http://hub.example")
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(*kind, targets[0])])
        began = time.monotonic()
        with pytest.raises(HubError, match="could not be reached") as caught:
            check_reachable("http://hub.example")
        assert caught.value.temporary
        assert time.monotonic() - began < 2
        for filler in fillers:
            filler.close()


def test_a_name_that_nobody_knows_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> list[object]:
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(HubError, match="could not be reached"):
        check_reachable("http://hub.example")
