"""Every block of docs/embeddings.md runs as it stands, against a Hub and a language model of this machine."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers.hub_server import HubServer
from resilient_heads.cli import main
from resilient_heads.text.descriptions import openai_chat
from resilient_heads.text.embeddings import ClassEmbeddings
from resilient_heads.text.encoders.sentence import SentenceTransformerEncoder

PAGE = Path(__file__).parents[2] / "docs" / "embeddings.md"


@pytest.mark.real_encoder
def test_the_page_runs(
    server: HubServer, minilm: SentenceTransformerEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_test")

    class Chat:
        id = "model-name"

        def __init__(self, model: str, *, base_url: str) -> None:
            assert (model, base_url) == ("model-name", "http://localhost:8000/v1")

        def __call__(self, prompt: str) -> str:
            return f"An answer to {prompt}"

    monkeypatch.setattr(openai_chat, "OpenAIChat", Chat)
    namespace = {
        "model": nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2)),
        "other": nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2)),
        "result": None,
    }
    found = re.findall(r"```(python|bash)\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert [language for language, _ in found].count("bash") == 2
    for language, code in found:
        if language == "python":
            exec(compile(code, str(PAGE), "exec"), namespace)
            continue
        for line in code.strip().splitlines():
            command, *arguments = shlex.split(line)
            assert command == "resilient-heads"
            assert main(arguments) == 0
    assert ClassEmbeddings.load("pets.safetensors").class_names == ("tabby cat", "red fox")
    assert len(server.main) == 2
    assert torch.equal(namespace["other"][1].projection.weight, namespace["model"][1].projection.weight)
