"""Models that the command line names: every weight comes from where the name says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import resilient_heads as rh
from resilient_heads.cli import main
from resilient_heads.errors import ArgumentError, DataError, ModelError
from resilient_heads.inputs.class_order import order_of
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
    model = tiny_vit()
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


def tiny_vit(classes: int = 3, **options: object) -> torch.nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=8,
        num_labels=classes,
        **options,
    )
    return transformers.ViTForImageClassification(config).eval()


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def as_pickle(folder: Path) -> None:
    torch.save(tiny_vit().state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:400])


def foreign_code(folder: Path) -> None:
    (folder / "theirs.py").write_text("raise SystemExit('remote code ran')")
    code = {"AutoConfig": "theirs.Config", "AutoModelForImageClassification": "theirs.Net"}
    edit(folder / "config.json", auto_map=code)


# What happens to a folder of transformers, and what the refusal says.
FOLDERS = {
    "a base model": (
        lambda f: pytest.importorskip("transformers").ViTModel(tiny_vit().config).save_pretrained(f),
        r"missing: classifier\.bias, classifier\.weight; unexpected: pooler\.dense\.bias.*random weights",
    ),
    "a fused model": (
        lambda f: rh.fuse(rh.wrap_model(tiny_vit(10), embeddings="cifar10")).save_pretrained(f),
        r"missing: classifier\.bias, classifier\.weight; unexpected: classifier\.",
    ),
    "more labels": (
        lambda f: edit(f / "config.json", id2label={str(i): f"x{i}" for i in range(5)}),
        r"of another shape: classifier\.bias, classifier\.weight",
    ),
    "more layers": (lambda f: edit(f / "config.json", num_hidden_layers=2), r"missing: vit\..*layer.*\.1\."),
    "fewer layers": (lambda f: edit(f / "config.json", num_hidden_layers=0), r"unexpected: vit\..*layer.*\.0\."),
    "code of its own": (foreign_code, "brings code of its own"),
    "a pickle": (as_pickle, r"holds its weights as a pickle \(\.bin\), and a pickle can run code"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "cannot load an image classifier .*: OSError"),
    "half the weights": (lambda f: cut(f / "model.safetensors"), "cannot load an image classifier"),
    "no configuration": (lambda f: (f / "config.json").unlink(), r"has no config\.json"),
    "half a configuration": (lambda f: (f / "config.json").write_text("{"), "cannot read the configuration"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "cannot read the configuration"),
    "another task": (lambda f: edit(f / "config.json", model_type="bert"), "cannot load an image classifier"),
    "a damaged processor": (
        lambda f: (f / "preprocessor_config.json").write_text("{"),
        "cannot read the image processor",
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_of_transformers_whose_weights_are_not_the_models_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], case: str
) -> None:
    tiny_vit().save_pretrained(tmp_path)
    change, message = FOLDERS[case]
    change(tmp_path)
    capfd.readouterr()
    with pytest.raises(ModelError, match=message) as error:
        named_model(f"hf:{tmp_path}", pretrained=True)
    assert str(error.value).isprintable()
    assert "trust_remote_code" not in str(error.value)
    assert "LOAD REPORT" not in capfd.readouterr().err


def test_a_folder_that_is_absent_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ModelError, match=r"There is no folder .*absent; expected a folder, or OWNER/NAME"):
        named_model(f"hf:{tmp_path / 'absent'}", pretrained=True)


def test_an_image_processor_of_foreign_code_is_not_replaced_by_the_usual_one(tmp_path: Path) -> None:
    tiny_vit().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"auto_map": {"AutoImageProcessor": "theirs.Processor"}}')
    assert named_model(f"hf:{tmp_path}", pretrained=True).preprocessing.transform is None


def test_labels_of_transformers_are_those_of_the_configuration(tmp_path: Path) -> None:
    tiny_vit(2, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1}).save_pretrained(tmp_path / "named")
    tiny_vit(2).save_pretrained(tmp_path / "unnamed")
    assert named_model(f"hf:{tmp_path / 'named'}", pretrained=True).labels == (("cat",), ("dog",))
    assert named_model(f"hf:{tmp_path / 'unnamed'}", pretrained=True).labels is None


CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("wrap", [[], ["--wrap", "cifar10"]])
def test_a_wrapped_model_of_transformers_gets_its_head_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], normalize: bool, wrap: list[str]
) -> None:
    wrapped = rh.wrap_model(tiny_vit(10), embeddings="cifar10", normalize=normalize)
    for parameter in wrapped.classifier.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    wrapped.save_pretrained(tmp_path / "w")
    images = torch.randn(20, 3, 16, 16)
    with torch.no_grad():
        labels = wrapped(images).logits.argmax(dim=1)
    np.savez(tmp_path / "images.npz", images=images.numpy(), labels=labels.numpy())
    words = ["campaign", "--model", f"hf:{tmp_path / 'w'}", *wrap, "--data", str(tmp_path / "images.npz"), "--quiet"]
    words += ["--protocol", "raw", "--layers", "classifier*", "--trials-per-site", "4", "--output", str(tmp_path / "c")]
    if wrap:
        assert main(words) == 1
        assert "already has a text-guided head" in capsys.readouterr().err
        return
    assert main(words) == 0
    result = rh.CampaignResult.load(tmp_path / "c")
    assert result.golden.correct.all()
    assert "classifier.latent" in result.record.layers
    assert f"{labels[-1]} ({CIFAR10[labels[-1]]})" in capsys.readouterr().out


TIMM = {
    "classes": ({"num_classes": 7}, r"The weights lack fc\.weight, fc\.bias"),
    "arguments": ({"model_args": {"num_classes": 7}}, r"The weights lack fc\.weight, fc\.bias"),
    "architecture": ({"architecture": "test_vit"}, "timm cannot make"),
    "unknown": ({"architecture": "no_such_model"}, "timm cannot make"),
}


@pytest.fixture
def timm_folder(tmp_path: Path) -> Path:
    timm = pytest.importorskip("timm")
    model = timm.create_model("test_resnet", num_classes=3)
    model.pretrained_cfg["num_classes"] = 3
    folder = tmp_path / "timm"
    pytest.importorskip("timm.models._hub").save_for_hf(
        model, folder, model_config={"label_names": ["cat", "dog", "cow"]}, safe_serialization=True
    )
    return folder


def test_a_folder_of_timm_brings_its_labels(timm_folder: Path) -> None:
    assert named_model(f"timm:local-dir:{timm_folder}", pretrained=True).labels == (("cat",), ("dog",), ("cow",))


@pytest.mark.parametrize("case", TIMM)
def test_a_folder_of_timm_whose_weights_are_not_the_models_is_refused(timm_folder: Path, case: str) -> None:
    changes, message = TIMM[case]
    edit(timm_folder / "config.json", **changes)
    loading = torch.nn.Module.load_state_dict
    with pytest.raises(ModelError, match=message):
        named_model(f"timm:local-dir:{timm_folder}", pretrained=True)
    assert torch.nn.Module.load_state_dict is loading


def test_a_pickle_with_code_in_a_folder_of_timm_is_refused_without_bad_advice(timm_folder: Path) -> None:
    (timm_folder / "model.safetensors").unlink()
    torch.save({"a": Runs()}, timm_folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="could run code, so it is not read") as error:
        named_model(f"timm:local-dir:{timm_folder}", pretrained=True)
    assert "weights_only" not in str(error.value)


class Runs:
    """Would run on unpickling."""

    def __reduce__(self) -> tuple:
        return (exec, ("raise SystemExit('pickle ran')",))


def test_a_model_of_timm_without_a_classifier_is_refused() -> None:
    pytest.importorskip("timm")
    with pytest.raises(ModelError, match="has no classifier; it gives features"):
        named_model("timm:vit_small_patch14_dinov2", pretrained=False)


@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn", "fcn_resnet50", "raft_small", "r3d_18"])
def test_models_of_other_tasks_are_refused_before_a_download(name: str) -> None:
    with pytest.raises(ModelError, match="expected a classifier"):
        named_model(f"torchvision:{name}", pretrained=False)


def test_published_weights_that_do_not_fit_are_not_called_a_failed_download(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = torchvision.models.squeezenet1_1().state_dict()
    del weights["classifier.1.bias"]
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: weights)
    with pytest.raises(ModelError, match="do not fit its model; pass --checkpoint: RuntimeError"):
        named_model("torchvision:squeezenet1_1", pretrained=True)


def test_labels_of_published_weights_order_the_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = torchvision.models.squeezenet1_1().state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: weights)
    named = named_model("torchvision:squeezenet1_1", pretrained=True)
    order = order_of(["n02102040", "Golden_Retriever", "tench"], named.labels, folder=Path("data"))
    assert order.index == {"tench": 0, "Golden_Retriever": 207, "n02102040": 217}
    assert named_model("torchvision:squeezenet1_1", pretrained=False).labels is None


def test_a_model_whose_eval_raises_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\nclass net(nn.Linear):\n    def __init__(self):\n        super().__init__(2, 3)\n"
        "    def eval(self):\n        raise RuntimeError('not me')\n"
    )
    with pytest.raises(ModelError, match="cannot be put into evaluation mode: RuntimeError: not me"):
        named_model(f"{tmp_path / 'net.py'}:net", pretrained=False)
