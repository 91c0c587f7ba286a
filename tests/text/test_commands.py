import json
from pathlib import Path

import pytest
import torch

from helpers.hub_server import HubServer
from resilient_heads.cli import main
from resilient_heads.text.embeddings import ClassEmbeddings
from resilient_heads.text.hub.settings import HubSettings


def test_embed_uses_descriptions_or_a_template(
    tiny_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names, sentences, output = tmp_path / "names.json", tmp_path / "d.json", tmp_path / "e.safetensors"
    names.write_text('["dog", "cat"]')
    sentences.write_text('{"cat": ["It purrs."], "dog": ["It barks."], "cow": ["It moos."]}')
    arguments = ["embed", "--classes", str(names), "--encoder", f"local-dir:{tiny_clip}", "--output", str(output)]
    assert main([*arguments, "--descriptions", str(sentences)]) == 0
    described = ClassEmbeddings.load(output)
    assert described.class_names == ("dog", "cat")
    assert main(arguments) == 0
    assert not torch.equal(ClassEmbeddings.load(output).vectors, described.vectors)
    assert "2 classes, 32 dimensions" in capsys.readouterr().out
    assert main([*arguments[:1], *arguments[3:]]) == 1
    names.write_text("{}")
    assert main(arguments) == 1
    assert "expected a JSON list" in capsys.readouterr().err


def test_embed_refuses_an_unwritable_output_before_encoding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = tmp_path / "names.json"
    names.write_text('["cat"]')
    for output in (tmp_path, names / "e.safetensors"):
        # The encoder does not exist, so the command must refuse before it loads one.
        assert main(["embed", "--classes", str(names), "--encoder", "no", "--output", str(output)]) == 1
        assert "--output must be a file in a folder" in capsys.readouterr().err


def test_bundled_and_saved_embeddings_are_listed_shown_and_verified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["embeddings", "list"]) == 0
    assert "food101" in capsys.readouterr().out
    assert main(["embeddings", "show", "cifar10"]) == 0
    assert "encoder: all-MiniLM-L6-v2" in capsys.readouterr().out
    assert main(["embeddings", "show", "cifar11"]) == 1
    assert "expected one of cifar10" in capsys.readouterr().err
    assert main(["embeddings", "verify"]) == 0
    assert capsys.readouterr().out.count("ok  ") == 6
    path = ClassEmbeddings(torch.randn(2, 3), ("a", "b")).save(tmp_path / "e.safetensors")
    assert main(["embeddings", "show", str(path)]) == 0
    assert main(["embeddings", "verify", str(path)]) == 0
    assert main(["embeddings", "verify", str(path), "--sha256", "0" * 64]) == 1
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["embeddings", "verify", str(path)]) == 1


def test_publish_writes_a_folder_and_uploads_it(
    server: HubServer,
    settings: HubSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = ClassEmbeddings(torch.randn(2, 3), ("a", "b")).save(tmp_path / "pets.safetensors")
    folder = tmp_path / "out"
    assert main(["embeddings", "publish", str(path), "--folder", str(folder)]) == 0
    assert main(["embeddings", "verify", str(folder)]) == 0
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    capsys.readouterr()
    assert main(["embeddings", "publish", str(path), "--folder", str(folder), "--repo", "owner/pets"]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed[printed.index("[") :])[0]["revision"] == server.main["owner/pets"]
    assert main(["embeddings", "publish", str(path), str(path), "--folder", str(folder)]) == 1


def test_embed_prints_the_class_order_and_the_encoder(
    tiny_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names, sentences = tmp_path / "names.json", tmp_path / "d.json"
    names.write_text('["dog", "cat"]')
    sentences.write_text('{"cat": ["It purrs."], "dog": ["It barks."]}')
    arguments = ["embed", "--descriptions", str(sentences), "--encoder", f"local-dir:{tiny_clip}"]
    arguments += ["--output", str(tmp_path / "e.safetensors")]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert f"Class order: as in {sentences} (cat, dog)" in printed
    assert "pass --classes names.json" in printed
    made = ClassEmbeddings.load(tmp_path / "e.safetensors").provenance
    assert f"at {made.encoder_revision}, weights sha256 {made.weights_sha256}" in printed
    assert main([*arguments, "--classes", str(names)]) == 0
    assert f"Class order: as in {names} (dog, cat)." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "nonsense"], "The device 'nonsense' cannot be used"),
        (["--revision", "abc"], "its files pin"),
        (["--encoder", "minilm-l6", "--revision", "abc"], "has no revisions"),
        (["--long-text", "error"], "longer than the encoder's 77 tokens"),
    ],
)
def test_embed_refuses_with_a_message(
    tiny_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    sentences = tmp_path / "d.json"
    sentences.write_text(json.dumps({"cat": ["It purrs " * 60]}))
    arguments = ["embed", "--descriptions", str(sentences), "--encoder", f"local-dir:{tiny_clip}"]
    assert main([*arguments, "--output", str(tmp_path / "e.safetensors"), *options]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "e.safetensors").exists()
