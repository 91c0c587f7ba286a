import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.hub_server import HubServer
from resilient_heads.errors import ArgumentError, EmbeddingError
from resilient_heads.text.embeddings import ClassEmbeddings, Provenance
from resilient_heads.text.encoders.openclip import OpenClipEncoder
from resilient_heads.text.encoders.pins import PINS
from resilient_heads.text.encoders.pooling import embed_classes
from resilient_heads.text.encoders.sentence import SentenceTransformerEncoder
from resilient_heads.text.hub.settings import HubSettings
from resilient_heads.text.prebuilt.build import kept_path
from resilient_heads.text.prebuilt.bundled import load_bundled, load_descriptions
from resilient_heads.text.prebuilt.load import load_embeddings
from resilient_heads.text.prebuilt.manifest import HubEntry, Manifest


@pytest.fixture(autouse=True)
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep built embeddings in a folder of the test."""
    monkeypatch.setenv("RESILIENT_HEADS_CACHE", str(tmp_path / "built"))
    return tmp_path / "built"


@pytest.fixture
def logged_origin(caplog: pytest.LogCaptureFixture) -> "LoggedOrigin":
    return LoggedOrigin(caplog)


class LoggedOrigin:
    """How the log says that embeddings were made since the last call."""

    def __init__(self, log: pytest.LogCaptureFixture) -> None:
        self.log = log

    def __call__(self) -> str:
        lines = [
            record.message for record in self.log.records if record.name.startswith("resilient_heads.text.prebuilt")
        ]
        self.log.clear()
        (origin,) = {how for how in ("Built the embeddings", "built before") for line in lines if how in line}
        return origin


@pytest.mark.parametrize("writable", [True, False])
def test_embeddings_are_built_once_and_then_kept(
    tiny_clip: Path, built: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, writable: bool
) -> None:
    if not writable:
        built.write_text("in the way")
    encoder = f"local-dir:{tiny_clip}"
    expected = embed_classes(load_descriptions("digits"), OpenClipEncoder(encoder))
    for round_ in range(2):
        found = load_embeddings("digits", encoder=encoder)
        assert torch.equal(found.vectors, expected.vectors)
        assert found.provenance == expected.provenance
        assert found.provenance.weights_sha256
        assert ("built before" in caplog.text) is (bool(round_) and writable)
    assert ("could not be kept" in caplog.text) is not writable


def test_other_weights_or_another_config_build_other_embeddings(
    tiny_clip: Path, tmp_path: Path, logged_origin: LoggedOrigin
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_clip, folder)
    absolute = load_embeddings("digits", encoder=f"local-dir:{folder}")
    assert logged_origin() == "Built the embeddings"
    relative = load_embeddings("digits", encoder=f"local-dir:{folder}/../model")
    assert logged_origin() == "built before"
    assert relative.provenance == absolute.provenance
    weights = folder / "open_clip_model.safetensors"
    content, state = weights.read_bytes(), load_file(weights)
    save_file({**state, "text_projection": -state["text_projection"]}, weights)
    other = load_embeddings("digits", encoder=f"local-dir:{folder}")
    assert logged_origin() == "Built the embeddings"
    assert not torch.equal(other.vectors, absolute.vectors)
    assert other.provenance.encoder_revision != absolute.provenance.encoder_revision
    weights.write_bytes(content)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["quick_gelu"] = True
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    assert not torch.equal(load_embeddings("digits", encoder=f"local-dir:{folder}").vectors, absolute.vectors)
    assert logged_origin() == "Built the embeddings"


def test_a_newer_commit_of_the_encoder_builds_new_embeddings(
    server: HubServer, settings: HubSettings, tiny_clip: Path, logged_origin: LoggedOrigin
) -> None:
    files = {path.name: path.read_bytes() for path in tiny_clip.iterdir()}
    first = server.commit("owner/clip", files)
    old = load_embeddings("digits", encoder="hf-hub:owner/clip", hub=settings)
    assert (logged_origin(), old.provenance.encoder_revision) == ("Built the embeddings", first)
    load_embeddings("digits", encoder="hf-hub:owner/clip", hub=settings)
    assert logged_origin() == "built before"
    weights = files["open_clip_model.safetensors"]
    second = server.commit(
        "owner/clip", {"open_clip_model.safetensors": weights[:-2] + bytes([weights[-2] ^ 0x40, weights[-1]])}
    )
    new = load_embeddings("digits", encoder="hf-hub:owner/clip", hub=settings)
    assert (logged_origin(), new.provenance.encoder_revision) == ("Built the embeddings", second)
    again = load_embeddings("digits", encoder="hf-hub:owner/clip", encoder_revision=first, hub=settings)
    assert (logged_origin(), again.provenance) == ("built before", old.provenance)
    with pytest.raises(EmbeddingError, match="no such revision"):
        load_embeddings("digits", encoder="hf-hub:owner/clip", encoder_revision="no-such-branch", hub=settings)
    with pytest.raises(ArgumentError, match="pass one of them"):
        load_embeddings("digits", encoder="hf-hub:owner/clip", encoder_revision=first, revision=first)


def test_kept_embeddings_load_offline_without_the_weights(
    server: HubServer, settings: HubSettings, tiny_clip: Path, tmp_path: Path, logged_origin: LoggedOrigin
) -> None:
    server.commit("owner/clip", {path.name: path.read_bytes() for path in tiny_clip.iterdir()})
    online = load_embeddings("digits", encoder="hf-hub:owner/clip", hub=settings)
    logged_origin()
    server.requests.clear()
    bare = dataclasses.replace(settings, cache_dir=tmp_path / "no-weights-here", offline=True)
    found = load_embeddings("digits", encoder="hf-hub:owner/clip", hub=bare)
    assert (logged_origin(), found.provenance) == ("built before", online.provenance)
    assert server.requests == []
    with pytest.raises(EmbeddingError, match="offline mode forbids"):
        load_embeddings("stl10", encoder="hf-hub:owner/clip", hub=bare)


@pytest.mark.parametrize("changed", ["encoder", "encoder_revision", "descriptions_sha256", "pooling", "normalized"])
def test_everything_that_decides_the_content_decides_the_file_name(
    changed: str, logged_origin: LoggedOrigin, built: Path
) -> None:
    made = Provenance(
        encoder="ViT-B-16/openai",
        encoder_revision=PINS["ViT-B-16/openai"].revision,
        descriptions_sha256=load_descriptions("digits").sha256,
    )
    kept = ClassEmbeddings(torch.randn(10, 4), load_descriptions("digits").class_names, made)
    kept.save(kept_path("digits", made))
    assert torch.equal(load_embeddings("digits", encoder="clip-vit-b-16", offline=True).vectors, kept.vectors)
    assert logged_origin() == "built before"
    other = dataclasses.replace(made, **{changed: False if changed == "normalized" else "other"})
    assert kept_path("digits", other) != kept_path("digits", made)
    # A file under the right name with another provenance is not used.
    ClassEmbeddings(kept.vectors, kept.class_names, other).save(kept_path("digits", made))
    with pytest.raises(EmbeddingError, match="offline mode forbids"):
        load_embeddings("digits", encoder="clip-vit-b-16", offline=True, hub=HubSettings(cache_dir=built))


def test_bundled_embeddings_that_the_manifest_does_not_trust_are_refused() -> None:
    other = Manifest(bundled={**Manifest.of_package().bundled, "cifar10": "0" * 64})
    with pytest.raises(EmbeddingError, match="'cifar10' are not those that the given manifest trusts"):
        load_embeddings("cifar10", manifest=other)
    assert load_embeddings("stl10", manifest=other).num_classes == 10


def test_the_error_gives_the_reason_of_every_place(settings: HubSettings) -> None:
    entry = HubEntry(
        name="pets", encoder="ViT-B-16/openai", repo="o/n", revision="0" * 40, file="p.safetensors", sha256="0" * 64
    )
    with pytest.raises(EmbeddingError, match=r"Hub: o/n.*no such repository.*On this machine: No descriptions"):
        load_embeddings("pets", encoder="clip-vit-b-16", hub=settings, manifest=Manifest(bundled={}, hub=(entry,)))


def test_clip_embeddings_offline_are_refused_with_the_reasons(
    server: HubServer, settings: HubSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RESILIENT_HEADS_CACHE", str(tmp_path))
    with pytest.raises(EmbeddingError, match=r"this release publishes none.*offline mode forbids.*minilm-l6"):
        load_embeddings("imagenet1k", encoder="clip-vit-b-16", offline=True)


@pytest.mark.real_encoder
def test_rebuilding_bundled_embeddings_gives_the_same_bytes(minilm: SentenceTransformerEncoder, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        made = [embed_classes(load_descriptions("stl10"), minilm) for _ in range(2)]
    finally:
        torch.set_num_threads(threads)
    files = [e.save(tmp_path / f"{n}.safetensors", dtype=torch.float16).read_bytes() for n, e in enumerate(made)]
    assert files[0] == files[1]
    # Another kind of processor may round the last bit differently, so compare the bundled bytes as numbers.
    assert torch.allclose(made[0].vectors, load_bundled("stl10").vectors, atol=1e-3)
    assert made[0].provenance == load_bundled("stl10").provenance
