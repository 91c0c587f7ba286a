from pathlib import Path

import pytest
import torch
from hub_server import HubServer

from resilient_heads.errors import EmbeddingError
from resilient_heads.text.bundled import load_bundled, load_descriptions
from resilient_heads.text.encoders.openclip import OpenClipEncoder
from resilient_heads.text.encoders.sentence import SentenceTransformerEncoder
from resilient_heads.text.hub import HubSettings
from resilient_heads.text.pooling import embed_classes
from resilient_heads.text.prebuilt import load_embeddings


@pytest.mark.parametrize("writable", [True, False])
def test_built_here_once_then_cached(
    tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, writable: bool
) -> None:
    root = tmp_path / "built"
    if not writable:
        root.write_text("in the way")
    monkeypatch.setenv("RESILIENT_HEADS_CACHE", str(root))
    encoder = f"local-dir:{tiny_clip}"
    expected = embed_classes(load_descriptions("digits"), OpenClipEncoder(encoder))
    found = load_embeddings("digits", encoder=encoder)
    assert torch.equal(found.vectors, expected.vectors)
    assert "built here with" in caplog.text
    again = load_embeddings("digits", encoder=encoder)
    assert torch.equal(again.vectors, expected.vectors)
    assert ("not kept" in caplog.text) is not writable


def test_clip_offline_says_why_at_once(
    server: HubServer, settings: HubSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RESILIENT_HEADS_CACHE", str(tmp_path))
    with pytest.raises(EmbeddingError, match=r"none are published.*offline mode forbids.*minilm-l6"):
        load_embeddings("imagenet1k", encoder="clip-vit-b-16", offline=True)


@pytest.mark.real_encoder
def test_rebuilding_the_wheel_gives_the_same_bytes(minilm: SentenceTransformerEncoder, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        made = [embed_classes(load_descriptions("stl10"), minilm) for _ in range(2)]
    finally:
        torch.set_num_threads(threads)
    files = [own.save(tmp_path / f"{n}.safetensors", dtype=torch.float16).read_bytes() for n, own in enumerate(made)]
    assert files[0] == files[1]
    # Another kind of processor may round the last bit otherwise, so the wheel's own bytes are compared as numbers.
    assert torch.allclose(made[0].vectors, load_bundled("stl10").vectors, atol=1e-3)
    assert made[0].provenance == load_bundled("stl10").provenance
