"""Every block of docs/embeddings.md runs unchanged, with a Hub, an encoder and a language model of the test."""

import re
import shlex
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import resilient_heads as rh
from helpers.hub_server import HubServer
from resilient_heads.cli import main
from resilient_heads.text.encoders.batching import BatchedEncoder
from resilient_heads.text.encoders.options import EncoderOptions
from resilient_heads.text.encoders.pins import MINILM, MINILM_SHA256
from resilient_heads.text.encoders.sentence import SentenceTransformerEncoder

PAGE = Path(__file__).parents[2] / "docs" / "embeddings.md"


class RandomMiniLM(BatchedEncoder):
    """An encoder with the name and the digests of MiniLM, but without weights."""

    id, revision, weights_sha256, context_length, embed_dim = MINILM, f"sha256:{MINILM_SHA256}", MINILM_SHA256, 256, 8

    def count_tokens(self, sentences: list[str]) -> list[int]:
        return [len(sentence.split()) for sentence in sentences]

    def run(self, sentences: list[str]) -> Tensor:
        return torch.randn(len(sentences), self.embed_dim)


class Chat:
    id = "model-name"

    def __init__(self, model: str, *, base_url: str) -> None:
        assert (model, base_url) == ("model-name", "http://localhost:8000/v1")

    def __call__(self, prompt: str) -> str:
        return f"An answer to {prompt}"


def network() -> nn.Module:
    return nn.Sequential(OrderedDict(body=nn.Linear(3, 5), fc=nn.Linear(5, 2)))


def blocks() -> list[tuple[str, str]]:
    return re.findall(r"```(python|bash)\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


def test_the_first_block_is_a_complete_script_that_runs_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    namespace: dict[str, object] = {}
    exec(compile(blocks()[0][1], str(PAGE), "exec"), namespace)
    assert rh.ClassEmbeddings.load("own.safetensors").class_names == ("tabby cat", "red fox")


def test_the_page_runs_from_top_to_bottom(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr(rh.text, "OpenAIChat", Chat)

    def minilm(*, options: EncoderOptions | None = None) -> RandomMiniLM:
        return RandomMiniLM(options)

    monkeypatch.setattr(SentenceTransformerEncoder, "minilm", minilm)
    model, other = network(), network()
    namespace = {"model": model, "other": other, "result": None}
    assert [language for language, _ in blocks()].count("bash") == 2
    for language, code in blocks():
        if language == "python":
            exec(compile(code, str(PAGE), "exec"), namespace)
            continue
        for line in code.strip().splitlines():
            command, *arguments = shlex.split(line)
            assert command == "resilient-heads"
            assert main(arguments) == 0
    assert rh.ClassEmbeddings.load("pets.safetensors").class_names == ("tabby cat", "red fox")
    assert len(server.main) == 2
    assert torch.equal(namespace["other"].fc.projection.weight, namespace["model"].fc.projection.weight)
