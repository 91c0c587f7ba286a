"""Models that the command line names: every weight comes from where the name says."""

from pathlib import Path

import numpy as np
import pytest
import torch

import resilient_heads as rh
from resilient_heads.cli import main
from resilient_heads.errors import ArgumentError, DataError, ModelError
from resilient_heads.inputs.images import read_images
from resilient_heads.inputs.models import named_model

torchvision = pytest.importorskip("torchvision")
image = pytest.importorskip("PIL.Image")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_models_of_torchvision_preprocess_pictures_as_published(tmp_path: Path, pictures: Path) -> None:
    plain = torchvision.models.resnet18(num_classes=3)
    with torch.no_grad():
        plain.fc.bias.copy_(torch.tensor([9.0, 0, 0]))
    torch.save(
        {"state_dict": {f"module.{name}": tensor for name, tensor in plain.state_dict().items()}}, tmp_path / "r.pth"
    )
    words = ["campaign", "--model", "torchvision:resnet18", "--checkpoint", str(tmp_path / "r.pth"), "--classes", "3"]
    words += ["--data", str(pictures), "--protocol", "raw", "--trials-per-site", "4", "--batch-size", "4", "--quiet"]
    words += ["--output", str(tmp_path / "c"), "--layers", "layer4.1.*", "fc", "--images", "6"]
    assert main(words) == 0
    result = rh.CampaignResult.load(tmp_path / "c")
    assert [site.site.name for site in result.sites] == ["layer4.1.conv1", "layer4.1.conv2", "fc"]
    assert result.golden.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert result.golden.predicted.tolist() == [0] * 6
    transform = torchvision.models.get_model_weights("resnet18").DEFAULT.transforms()
    expected = transform(image.open(pictures / "bee/2.png").convert("RGB"))
    named = named_model("torchvision:resnet18", pretrained=False)
    read = read_images(pictures, named.preprocessing)
    assert torch.equal(read.images[6], expected)
    assert read.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert not named.model.training


def test_published_weights_are_read_without_running_code(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = torchvision.models.squeezenet1_1().state_dict()
    asked: dict = {}

    def download(url: str, **options: object) -> dict:
        asked.update(options, url=url)
        return weights

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    named = named_model("torchvision:squeezenet1_1", pretrained=True)
    assert asked["weights_only"] is True
    assert asked["check_hash"] is True
    assert torch.equal(named.model.classifier[1].weight, weights["classifier.1.weight"])
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: 1 / 0)
    with pytest.raises(ModelError, match="could not be downloaded; pass --checkpoint: ZeroDivisionError"):
        named_model("torchvision:squeezenet1_1", pretrained=True)


def test_models_of_transformers_bring_their_preprocessing(tmp_path: Path, pictures: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=8,
        num_labels=3,
    )
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "vit")
    with pytest.raises(DataError, match="expects is unknown; pass --resize"):
        read_images(pictures, named_model(f"hf:{tmp_path / 'vit'}", pretrained=True).preprocessing)
    processor = transformers.ViTImageProcessor(
        size={"height": 16, "width": 16}, image_mean=[0.1] * 3, image_std=[2.0] * 3
    )
    processor.save_pretrained(tmp_path / "vit")
    named = named_model(f"hf:{tmp_path / 'vit'}", pretrained=True)
    assert named.preprocessing.mean == (0.1, 0.1, 0.1)
    images = read_images(pictures, named.preprocessing).images
    assert images.shape == (12, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(named.model(images).logits, model(images).logits)
        np.savez(tmp_path / "images.npz", images=images.numpy(), labels=model(images).logits.argmax(1).numpy())
    words = [
        "campaign",
        "--model",
        f"hf:{tmp_path / 'vit'}",
        "--data",
        str(tmp_path / "images.npz"),
        "--protocol",
        "raw",
    ]
    assert (
        main([*words, "--trials-per-site", "4", "--quiet", "--layers", "classifier", "--output", str(tmp_path / "c")])
        == 0
    )
    with pytest.raises(ModelError, match=r"has no config\.json; expected a folder that model\.save_pretrained"):
        named_model(f"hf:{tmp_path}", pretrained=True)


def test_models_of_timm_bring_their_preprocessing() -> None:
    pytest.importorskip("timm")
    named = named_model("timm:resnet10t", pretrained=False, classes=7)
    assert named.preprocessing.mean == (0.485, 0.456, 0.406)
    assert named.preprocessing.transform(image.new("RGB", (300, 400))).shape == (3, 176, 176)
    assert named.model(torch.zeros(1, 3, 176, 176)).shape == (1, 7)
    with pytest.raises(ModelError, match="timm cannot make 'resnet10x'"):
        named_model("timm:resnet10x", pretrained=False)


SOURCE = "import beside\nmodel = 3\ndef bad(): return 3\ndef worse(): return 1 / 0\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:resnet19", "cannot make a classifier 'resnet19'"),
        ("absent.py:net", "There is no file"),
        ("mine.py:absent", "has no function 'absent'"),
        ("mine.py:model", "model in .*mine.py is a int; expected a function"),
        ("mine.py:bad", "must return a torch.nn.Module, found a int"),
        ("mine.py:worse", r"failed: ZeroDivisionError: division by zero \(mine.py, line 4\)"),
        (
            "broken.py:net",
            r"cannot be run: ModuleNotFoundError: No module named 'no_such_module' \(broken.py, line",
        ),
    ],
)
def test_a_model_that_cannot_be_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(SOURCE)
    Path("beside.py").write_text("")
    Path("broken.py").write_text("import no_such_module\n")
    with pytest.raises(ModelError, match=message):
        named_model(name, pretrained=False)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("torchvision:", {"pretrained": False}, "No model is named 'torchvision:'; expected torchvision:NAME"),
        ("mine.py:net", {"pretrained": False, "classes": 3}, "--classes must be a whole number of at least 2, for"),
        ("timm:resnet18", {"pretrained": False, "classes": 1}, "--classes must be a whole number of at least 2"),
        ("torchvision:resnet18", {"pretrained": True, "classes": 3}, "pass --classes with --checkpoint"),
    ],
)
def test_a_wrong_name_or_number_of_classes_is_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        named_model(name, **options)
