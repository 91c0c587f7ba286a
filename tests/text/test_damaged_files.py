"""Damaged and foreign files: refused with a reason, and left unchanged."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import resilient_heads as rh
from resilient_heads.errors import DescriptionError, EmbeddingError, HubError, ModelError
from resilient_heads.text.descriptions.generate import generate_descriptions
from resilient_heads.text.hub.settings import HubSettings
from resilient_heads.text.prebuilt.publish import publish, write_folder


def answer(prompt: str) -> str:
    return f"This is an answer to the question {prompt}"


def test_an_answer_file_with_other_content_is_refused_and_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    content = json.dumps({"cat": ["A cat has whiskers."]})
    for text in (content, content[:-5], '{"class": "cat"}'):
        path.write_text(text)
        with pytest.raises(DescriptionError, match="is not an answer"):
            generate_descriptions(["cat"], answer, questions=["What is a {}?"], answers=path)
        assert path.read_text() == text


def test_an_incomplete_answer_is_asked_again_and_a_complete_one_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "answers.jsonl"
    first = generate_descriptions(["cat", "dog"], answer, questions=["What is a {}?"], answers=path)
    whole = path.read_bytes()
    for cut in (1, 2, 30):
        path.write_bytes(whole[:-cut])
        assert generate_descriptions(["cat", "dog"], answer, questions=["What is a {}?"], answers=path) == first
        assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines())
    assert "an incomplete answer" in caplog.text


def test_a_head_with_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    rh.TextGuidedHead(6, rh.load_embeddings("digits")).save_pretrained(tmp_path)
    for name in ("model.safetensors", "embeddings.safetensors"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ModelError, match=f"{name} is missing or damaged"):
            rh.TextGuidedHead.from_pretrained(tmp_path)
        (tmp_path / name).write_bytes(content)
    assert isinstance(rh.TextGuidedHead.from_pretrained(tmp_path), nn.Module)


def test_saving_a_head_removes_the_embeddings_of_an_earlier_one(tmp_path: Path) -> None:
    rh.TextGuidedHead(6, rh.load_embeddings("digits")).save_pretrained(tmp_path)
    rh.TextGuidedHead(6, (3, 4)).save_pretrained(tmp_path)
    assert not (tmp_path / "embeddings.safetensors").exists()
    assert rh.TextGuidedHead.from_pretrained(tmp_path).num_classes == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("README.md", "has README.md, which write_folder did not write"),
        ("manifest.json", "not a folder of published embeddings"),
    ],
)
def test_a_folder_with_other_files_is_refused_and_unchanged(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_text('{"name": "my web site"}')
    with pytest.raises(EmbeddingError, match=message):
        write_folder({"digits": rh.load_embeddings("digits")}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == '{"name": "my web site"}'


def test_publishing_without_a_server_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    hub = HubSettings(endpoint="http://127.0.0.1:9", token="none")
    folder = write_folder({"two": rh.ClassEmbeddings(torch.eye(2), ("a", "b"))}, tmp_path / "out")
    with pytest.raises(HubError, match="could not be reached"):
        publish(folder, "o/n", hub=hub)
    with pytest.raises(HubError, match="could not be reached"):
        rh.TextGuidedHead(6, (3, 4)).push_to_hub("o/n", hub=hub)
