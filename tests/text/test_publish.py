"""A published folder has a manifest with digests and a card whose code runs unchanged."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers.hub_server import HubServer
from resilient_heads.cli import main
from resilient_heads.errors import EmbeddingError
from resilient_heads.text.embeddings import ClassEmbeddings, Provenance
from resilient_heads.text.hub.settings import HubSettings
from resilient_heads.text.prebuilt.publish import publish, verify_folder, write_folder

Shown = pytest.CaptureFixture[str]


def made(seed: int = 0) -> ClassEmbeddings:
    vectors = torch.randn(2, 8, generator=torch.Generator().manual_seed(seed))
    return ClassEmbeddings(vectors, ("cat", "dog"), Provenance(encoder="E/t", encoder_revision="a" * 40))


def blocks(card: str) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL))


def test_vectors_keep_their_dtype_unless_another_is_chosen(tmp_path: Path, capsys: Shown) -> None:
    source = made().save(tmp_path / "pets.safetensors")
    arguments = ["embeddings", "publish", str(source), "--folder", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert "pets: stored as float32, no value changed" in capsys.readouterr().out
    assert torch.equal(verify_folder(tmp_path / "out")["pets"].vectors, made().vectors)
    assert main([*arguments, "--dtype", "float16"]) == 0
    assert re.search(r"pets: stored as float16, rounded from float32 by at most \d\.\de-0\d", capsys.readouterr().out)
    assert torch.equal(verify_folder(tmp_path / "out")["pets"].vectors, made().vectors.half().float())
    assert "| float16 |" in (tmp_path / "out" / "README.md").read_text()
    tiny = ClassEmbeddings(torch.full((1, 2), 1e-12), ("a",))
    with pytest.raises(EmbeddingError, match="all zeros"):
        write_folder({"tiny": tiny}, tmp_path / "tiny", dtype=torch.float16)


@pytest.mark.slow
def test_the_code_of_a_card_runs(
    server: HubServer, settings: HubSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder({"pets": made()}, tmp_path / "out")
    local = (folder / "README.md").read_text()
    assert "have not been published" in local
    monkeypatch.chdir(folder)
    namespace: dict[str, object] = {}
    exec(blocks(local), namespace)
    assert torch.equal(namespace["embeddings"].vectors, made().vectors)  # type: ignore[attr-defined]

    publish(folder, "owner/pets", hub=settings)
    card = server.commits["owner/pets"][server.main["owner/pets"]]["README.md"].decode()
    assert card == (folder / "README.md").read_text()
    for text in (local, card):
        assert not re.search(r"OWNER|COMMIT|NAME\b|TODO|<[a-z ]+>", text)
    assert 'hf_hub_download("owner/pets", "pets.safetensors"' in card
    reader = {**os.environ, "HF_ENDPOINT": server.url, "HF_HUB_CACHE": str(tmp_path / "reader"), "HF_HUB_OFFLINE": "0"}
    code = blocks(card) + "print(embeddings.vectors.tolist())"
    run = subprocess.run([sys.executable, "-c", code], env=reader, cwd=tmp_path, capture_output=True, text=True)
    assert json.loads(run.stdout) == made().vectors.tolist(), run.stderr
    publish(folder, "owner/elsewhere", hub=settings)
    assert '"owner/elsewhere"' in (folder / "README.md").read_text()


def test_an_edited_card_is_published_unchanged(server: HubServer, settings: HubSettings, tmp_path: Path) -> None:
    folder = write_folder({"pets": made()}, tmp_path / "out")
    (folder / "README.md").write_text("My own words.")
    publish(folder, "owner/pets", hub=settings)
    assert server.commits["owner/pets"][server.main["owner/pets"]]["README.md"] == b"My own words."


def test_the_digest_of_the_manifest_is_checked(tmp_path: Path, capsys: Shown) -> None:
    folder = write_folder({"pets": made()}, tmp_path / "out")
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert main(["embeddings", "verify", str(folder), "--sha256", digest.upper()]) == 0
    assert digest in capsys.readouterr().out
    assert main(["embeddings", "verify", str(folder), "--sha256", "0" * 64]) == 1
    assert "manifest.json has sha256" in capsys.readouterr().err
    assert main(["embeddings", "verify", "--sha256", digest]) == 1
    assert "needs a file or a folder" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["../x.safetensors", "..", "a/b.safetensors", "/x.safetensors", "x.bin", ""])
def test_a_manifest_with_files_outside_the_folder_is_refused(tmp_path: Path, file: str) -> None:
    folder = write_folder({"pets": made()}, tmp_path / "out")
    listing = json.loads((folder / "manifest.json").read_text())
    listing["files"][file] = listing["files"]["pets.safetensors"]
    (folder / "manifest.json").write_text(json.dumps(listing))
    with pytest.raises(EmbeddingError, match="not a file of embeddings in this folder"):
        verify_folder(folder)
    listing["files"] = {}
    (folder / "manifest.json").write_text(json.dumps(listing))
    with pytest.raises(EmbeddingError, match="lists no file"):
        verify_folder(folder)


def test_a_folder_can_be_written_again(tmp_path: Path) -> None:
    folder = write_folder({"cats": made(0), "dogs": made(1)}, tmp_path / "out")
    write_folder({"dogs": made(2), "birds": made(3)}, folder)
    found = verify_folder(folder)
    assert set(found) == {"dogs", "birds"}
    assert torch.equal(found["dogs"].vectors, made(2).vectors)
    fresh = write_folder({"dogs": made(2), "birds": made(3)}, tmp_path / "fresh")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {p.name: p.read_bytes() for p in fresh.iterdir()}


def test_other_embeddings_in_the_folder_are_neither_overwritten_nor_published(tmp_path: Path) -> None:
    mine = made(5).save(tmp_path / "out" / "mine.safetensors").read_bytes()
    for name in ("pets", "mine"):
        with pytest.raises(EmbeddingError, match="write_folder did not write there"):
            write_folder({name: made()}, tmp_path / "out")
    assert (tmp_path / "out" / "mine.safetensors").read_bytes() == mine
    assert not (tmp_path / "out" / "manifest.json").exists()
