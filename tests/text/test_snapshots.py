"""Model repositories from the Hub: pinned, from the cache first, and with time limits."""

import dataclasses
import time
from pathlib import Path

import pytest

from helpers.hub_server import HubServer
from resilient_heads.errors import HubError
from resilient_heads.text.hub.settings import HubSettings
from resilient_heads.text.hub.snapshots import fetch_snapshot, newest_commit

FILES = {"config.json": b"{}", "model.safetensors": b"weights", "other.safetensors": b"more weights", "README.md": b"x"}


def fetch(settings: HubSettings, revision: str | None = None) -> Path:
    names = ("none.safetensors", "model.safetensors", "other.safetensors")
    return fetch_snapshot("owner/model", ("config.json",), any_of=names, revision=revision, settings=settings)


def test_only_needed_files_are_downloaded(server: HubServer, settings: HubSettings) -> None:
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
def test_refusals_are_reported_within_seconds(
    server: HubServer, settings: HubSettings, fault: int, reason: str, temporary: bool
) -> None:
    server.commit("owner/model", FILES)
    server.fault = fault
    began = time.monotonic()
    with pytest.raises(HubError, match=reason) as caught:
        fetch(settings)
    assert time.monotonic() - began < 3
    assert caught.value.temporary is temporary


def test_a_cached_commit_needs_no_request(server: HubServer, settings: HubSettings) -> None:
    commit = server.commit("owner/model", FILES)
    fetch(settings)
    server.commit("owner/model", {"model.safetensors": b"newer"})
    server.requests.clear()
    server.fault = 404
    assert (fetch(settings, commit) / "model.safetensors").read_bytes() == b"weights"
    assert server.requests == []


def test_an_incomplete_cached_commit_is_completed(server: HubServer, settings: HubSettings) -> None:
    commit = server.commit("owner/model", FILES)
    (fetch(settings) / "model.safetensors").unlink()
    assert (fetch(settings, commit) / "model.safetensors").read_bytes() == b"weights"


def test_the_cached_commit_is_used_while_the_hub_fails(
    server: HubServer, settings: HubSettings, caplog: pytest.LogCaptureFixture
) -> None:
    commit = server.commit("owner/model", FILES)
    fetch(settings)
    server.commit("owner/model", {"model.safetensors": b"newer"})
    server.fault = 503
    assert fetch(settings).name == commit
    assert "answered 503" in caplog.text
    assert f"Using the cached commit {commit}" in caplog.text
    assert newest_commit("owner/model", revision=None, settings=settings) == commit
    server.fault = 404  # a deleted repository is no temporary failure, so the cached commit is not used
    with pytest.raises(HubError):
        fetch(settings)


@pytest.mark.parametrize("hub", ["none", "default", "given"])
def test_offline_mode_forbids_downloads_however_it_is_set(
    server: HubServer, settings: HubSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    chosen = {"none": None, "default": HubSettings(), "given": settings}[hub]
    with pytest.raises(HubError, match="not in the cache, and offline mode forbids"):
        fetch(HubSettings.from_options(chosen, offline=True))
    assert newest_commit("owner/model", revision=None, settings=HubSettings(offline=True)) == ""
    assert server.requests == []


def test_a_read_only_cache_is_bypassed(
    server: HubServer, settings: HubSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.commit("owner/model", FILES)
    (tmp_path / "file").write_text("in the way")
    folder = fetch(dataclasses.replace(settings, cache_dir=tmp_path / "file" / "cache"))
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert "cannot be written" in caplog.text


@pytest.mark.parametrize("address", ["http://hub.invalid", "http://127.0.0.1:99999", "http://127.0.0.1:9"])
def test_an_address_without_a_server_is_reported_within_seconds(settings: HubSettings, address: str) -> None:
    began = time.monotonic()
    with pytest.raises(HubError, match=f"{address} could not be reached.*pass offline=True"):
        fetch(dataclasses.replace(settings, endpoint=address))
    assert time.monotonic() - began < 5
