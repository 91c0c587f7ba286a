import contextlib
import dataclasses
import hashlib
import logging
import multiprocessing
import socket
import tempfile
import time
from pathlib import Path

import pytest
import torch

from helpers.hub_server import HubServer
from resilient_heads.errors import EmbeddingError, HubError
from resilient_heads.text.embeddings import ClassEmbeddings, Provenance
from resilient_heads.text.hub.settings import HubSettings
from resilient_heads.text.prebuilt.bundled import bundled_names, load_bundled
from resilient_heads.text.prebuilt.load import load_embeddings
from resilient_heads.text.prebuilt.manifest import HubEntry, Manifest
from resilient_heads.text.prebuilt.publish import publish, verify_folder, write_folder

CLIP = "ViT-B-16/openai"


def made(seed: int = 0) -> ClassEmbeddings:
    vectors = torch.randn(3, 8, generator=torch.Generator().manual_seed(seed)).half().float()
    return ClassEmbeddings(vectors, ("cat", "dog", "bird"), Provenance(encoder=CLIP, encoder_revision="a" * 40))


def publish_by_hand(server: HubServer, seed: int = 0) -> Manifest:
    """Put embeddings onto the server and return the manifest that pins them."""
    content = _bytes(made(seed))
    commit = server.commit("owner/embeddings", {"pets.safetensors": content})
    entry = HubEntry(
        name="pets",
        encoder=CLIP,
        repo="owner/embeddings",
        revision=commit,
        file="pets.safetensors",
        sha256=hashlib.sha256(content).hexdigest(),
    )
    return Manifest(bundled={}, hub=(entry,))


def _bytes(embeddings: ClassEmbeddings) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return embeddings.save(Path(folder) / "e.safetensors").read_bytes()


def load(manifest: Manifest, settings: HubSettings, **choices: str) -> ClassEmbeddings:
    return load_embeddings("pets", encoder="clip-vit-b-16", hub=settings, manifest=manifest, **choices)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RESILIENT_HEADS_CACHE", str(tmp_path / "built"))


def test_embeddings_are_downloaded_once_and_then_cached(
    server: HubServer, settings: HubSettings, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = publish_by_hand(server)
    assert torch.equal(load(manifest, settings).vectors, made().vectors)
    assert "Downloaded owner/embeddings" in caplog.text
    server.requests.clear()
    assert torch.equal(load(manifest, settings).vectors, made().vectors)
    assert server.requests == []
    assert "Using the cached owner/embeddings" in caplog.text


def test_a_newer_commit_changes_nothing(server: HubServer, settings: HubSettings) -> None:
    manifest = publish_by_hand(server, seed=0)
    publish_by_hand(server, seed=1)
    assert torch.equal(load(manifest, settings).vectors, made(0).vectors)


def test_cached_embeddings_load_offline(server: HubServer, settings: HubSettings) -> None:
    manifest = publish_by_hand(server)
    load(manifest, settings)
    server.requests.clear()
    offline = dataclasses.replace(settings, offline=True)
    assert torch.equal(load(manifest, offline).vectors, made().vectors)
    assert server.requests == []


def test_offline_mode_from_the_environment_is_obeyed(
    server: HubServer, settings: HubSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = publish_by_hand(server)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    began = time.monotonic()
    with pytest.raises(EmbeddingError, match="offline mode forbids"):
        load(manifest, settings)
    assert time.monotonic() - began < 1
    assert server.requests == []


@pytest.mark.parametrize("listening", [False, True])
def test_a_hub_that_does_not_answer_is_reported_within_seconds(
    settings: HubSettings, server: HubServer, listening: bool
) -> None:
    manifest = publish_by_hand(server)
    with contextlib.ExitStack() as stack:
        silent = stack.enter_context(socket.socket())
        silent.bind(("127.0.0.1", 0))
        if listening:  # a host that takes no more connections, as a black hole does
            silent.listen(0)
            fillers = [stack.enter_context(socket.socket()) for _ in range(3)]
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(silent.getsockname())
        nowhere = dataclasses.replace(settings, endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(EmbeddingError, match="could not be reached"):
            load(manifest, nowhere)
        assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (401, "access is refused"),
        (403, "access is refused"),
        (404, "no such file|no such repository"),
        (503, "answered 503"),
        ("corrupt", "damaged during the download"),
        ("truncate", "could not be downloaded|damaged during the download"),
    ],
)
def test_a_failing_hub_is_reported_and_its_content_not_used(
    server: HubServer, settings: HubSettings, fault: str | int, reason: str
) -> None:
    manifest = publish_by_hand(server)
    server.fault = fault
    began = time.monotonic()
    with pytest.raises(EmbeddingError, match=reason):
        load(manifest, settings)
    assert time.monotonic() - began < 30
    server.fault = None
    assert torch.equal(load(manifest, settings).vectors, made().vectors)


def test_a_slow_hub_is_waited_for(server: HubServer, settings: HubSettings) -> None:
    manifest = publish_by_hand(server)
    server.fault = "slow"
    assert torch.equal(load(manifest, settings).vectors, made().vectors)


def test_a_damaged_cached_file_is_downloaded_again(server: HubServer, settings: HubSettings, tmp_path: Path) -> None:
    manifest = publish_by_hand(server)
    load(manifest, settings)
    (blob,) = (path for path in (tmp_path / "cache").rglob("blobs/*") if path.is_file())
    blob.write_bytes(blob.read_bytes()[:-1] + b"\x7f")
    assert torch.equal(load(manifest, settings).vectors, made().vectors)


def test_a_read_only_cache_is_bypassed(
    server: HubServer, settings: HubSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = publish_by_hand(server)
    (tmp_path / "file").write_text("in the way")
    blocked = dataclasses.replace(settings, cache_dir=tmp_path / "file" / "cache")
    assert torch.equal(load(manifest, blocked).vectors, made().vectors)
    assert "cannot be written" in caplog.text


def _load_in_process(manifest: Manifest, settings: HubSettings, queue: "multiprocessing.Queue[str]") -> None:
    found = load_embeddings("pets", encoder="clip-vit-b-16", hub=settings, manifest=manifest)
    queue.put(hashlib.sha256(found.vectors.numpy().tobytes()).hexdigest())


@pytest.mark.slow
def test_two_processes_fill_one_cache(
    server: HubServer, settings: HubSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = publish_by_hand(server)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    server.fault = "slow"
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[str] = context.Queue()
    running = [context.Process(target=_load_in_process, args=(manifest, settings, queue)) for _ in range(2)]
    for process in running:
        process.start()
    digests = {queue.get(timeout=60) for _ in running}
    for process in running:
        process.join(10)
    assert digests == {hashlib.sha256(made().vectors.numpy().tobytes()).hexdigest()}


def test_published_embeddings_download_unchanged(server: HubServer, settings: HubSettings, tmp_path: Path) -> None:
    folder = write_folder({"pets": made()}, tmp_path / "out")
    (entry,) = publish(folder, "owner/embeddings", hub=settings)
    manifest = Manifest(bundled={}, hub=(entry,))
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest
    found = load(manifest, settings)
    assert torch.equal(found.vectors, made().vectors)
    assert found.provenance == made().provenance
    assert set(server.commits["owner/embeddings"][entry.revision]) == {"README.md", "manifest.json", "pets.safetensors"}


def test_another_revision_is_checked_against_its_own_manifest(
    server: HubServer, settings: HubSettings, tmp_path: Path
) -> None:
    (entry,) = publish(write_folder({"pets": made(0)}, tmp_path / "a"), "owner/embeddings", hub=settings)
    (newer,) = publish(write_folder({"pets": made(1)}, tmp_path / "b"), "owner/embeddings", hub=settings)
    manifest = Manifest(bundled={}, hub=(entry,))
    assert torch.equal(load(manifest, settings, revision=newer.revision).vectors, made(1).vectors)
    with pytest.raises(HubError, match="no such revision"):
        load(manifest, settings, revision="f" * 40)
    with pytest.raises(EmbeddingError, match="omit revision="):
        load_embeddings("cifar10", revision="f" * 40)


def test_a_branch_is_asked_for_its_newest_manifest(server: HubServer, settings: HubSettings, tmp_path: Path) -> None:
    for seed in range(2):
        folder = write_folder({"pets": made(seed)}, tmp_path / str(seed))
        manifest = Manifest(bundled={}, hub=publish(folder, "owner/embeddings", hub=settings))
        assert torch.equal(load(manifest, settings, revision="main").vectors, made(seed).vectors)
    offline = dataclasses.replace(settings, offline=True)
    assert torch.equal(load(manifest, offline, revision="main").vectors, made(1).vectors)


def test_settings_never_show_their_token(settings: HubSettings) -> None:
    assert settings.token == "hf_test"
    assert "hf_test" not in repr(settings)


@pytest.mark.parametrize("fault", [401, 503])
def test_a_refused_upload_is_reported(server: HubServer, settings: HubSettings, tmp_path: Path, fault: int) -> None:
    folder = write_folder({"pets": made()}, tmp_path / "out")
    server.fault = fault
    with pytest.raises(HubError, match="Publishing to owner/embeddings"):
        publish(folder, "owner/embeddings", hub=settings)
    with pytest.raises(HubError, match="offline"):
        publish(folder, "owner/embeddings", hub=dataclasses.replace(settings, offline=True))


def test_equal_embeddings_write_equal_folders(tmp_path: Path) -> None:
    one, other = write_folder({"pets": made()}, tmp_path / "a"), write_folder({"pets": made()}, tmp_path / "b")
    assert {p.name: p.read_bytes() for p in one.iterdir()} == {p.name: p.read_bytes() for p in other.iterdir()}
    card = (one / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert hashlib.sha256((one / "pets.safetensors").read_bytes()).hexdigest() in card


@pytest.mark.parametrize("damage", ["flip", "missing", "spare", "manifest"])
def test_a_damaged_folder_does_not_verify(tmp_path: Path, damage: str) -> None:
    folder = write_folder({"pets": made()}, tmp_path)
    assert torch.equal(verify_folder(folder)["pets"].vectors, made().vectors)
    file = folder / "pets.safetensors"
    if damage == "flip":
        file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    elif damage == "missing":
        file.unlink()
    elif damage == "spare":
        (folder / "more.safetensors").write_bytes(b"")
    else:
        (folder / "manifest.json").write_text("[]")
    with pytest.raises(EmbeddingError):
        verify_folder(folder)


def test_embeddings_that_cannot_be_published_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EmbeddingError, match="nothing to publish"):
        write_folder({}, tmp_path)
    with pytest.raises(EmbeddingError, match="cannot be a file name"):
        write_folder({"../pets": made()}, tmp_path)
    with pytest.raises(EmbeddingError, match="overflow"):
        write_folder({"pets": ClassEmbeddings(torch.full((1, 2), 1e6), ("a",))}, tmp_path, dtype=torch.float16)


@pytest.mark.parametrize("content", [b"[]", b"{", b'{"bundled": {}, "hub": [{"name": "x"}]}'])
def test_a_damaged_manifest_is_refused(content: bytes) -> None:
    with pytest.raises(EmbeddingError, match="damaged"):
        Manifest.from_bytes(content)


def test_a_manifest_entry_needs_a_commit() -> None:
    with pytest.raises(EmbeddingError, match="revision"):
        HubEntry(name="a", encoder="b", repo="c/d", revision="main", file="e", sha256="0" * 64)


def test_bundled_embeddings_need_no_network(caplog: pytest.LogCaptureFixture) -> None:
    for name in bundled_names():
        assert torch.equal(load_embeddings(name, offline=True).vectors, load_bundled(name).vectors)
    assert "Using the bundled embeddings" in caplog.text
    assert Manifest.of_package().hub == ()
    with pytest.raises(EmbeddingError, match="No embeddings are named"):
        load_embeddings("imagenet22k")


def test_bundled_embeddings_replace_those_of_a_failing_hub(
    server: HubServer, settings: HubSettings, caplog: pytest.LogCaptureFixture
) -> None:
    wheel = Manifest.of_package()
    entry = HubEntry(
        name="cifar10", encoder="all-MiniLM-L6-v2", repo="owner/e", revision="0" * 40, file="c", sha256="0" * 64
    )
    found = load_embeddings("cifar10", hub=settings, manifest=dataclasses.replace(wheel, hub=(entry,)))
    assert torch.equal(found.vectors, load_bundled("cifar10").vectors)
    assert [record.levelno for record in caplog.records if "cannot be taken from the Hub" in record.message] == [
        logging.WARNING
    ]
