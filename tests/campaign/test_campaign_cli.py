"""The commands campaign, merge, replay and report, and how they find models and images."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import resilient_heads as rh
from helpers.small_campaign import Net, arguments, campaign, labelled, net
from resilient_heads.cli import main, one_line_warnings
from resilient_heads.errors import ArgumentError, DamagedChunkWarning, DataError, ModelError
from resilient_heads.inputs.checkpoints import read_checkpoint
from resilient_heads.inputs.images import read_images
from resilient_heads.inputs.models import named_model
from resilient_heads.inputs.preprocessing import Preprocessing, preprocessing_from

torchvision = pytest.importorskip("torchvision")
image = pytest.importorskip("PIL.Image")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three classes of four pictures each, of different sizes."""
    generator = np.random.default_rng(0)
    for label, name in enumerate(("ant", "bee", "cat")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(4):
            pixels = generator.integers(0, 80, size=(40 + number, 50, 3), dtype=np.uint8)
            pixels[..., label] += 150
            image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{number}.png")
    return tmp_path / "pictures"


def fails(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line with which a command refuses."""
    assert main(words) == 1
    err = capsys.readouterr().err
    assert err.startswith("resilient-heads: ")
    assert err.count("\n") == 1, err
    return err


def test_a_campaign_is_run_merged_reported_and_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, folder = arguments(tmp_path / "c"), tmp_path / "c"
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "180 trials written to" in out
    assert "| conv " in out
    assert "masked" in out
    in_library = campaign(None).save(tmp_path / "r") / "result.parquet"
    assert (folder / "result.parquet").read_bytes() == in_library.read_bytes()
    assert main(["report", str(folder)]) == 0
    assert "CampaignResult(Net, raw, 2 sites, 180 trials): seed 0, fault-free accuracy 100.00% on 12 images" in (
        capsys.readouterr().out
    )
    assert main(["merge", str(folder)]) == 0
    assert (folder / "result.parquet").read_bytes() == in_library.read_bytes()
    trial = rh.replay(folder, net(), labelled(), site="fc", trial=7)
    model_and_data = words[1:5]
    capsys.readouterr()
    assert main(["replay", str(folder), "--site", "fc", "--trial", "7", *model_and_data]) == 0
    out = capsys.readouterr().out
    assert f"bit {trial.bit} of neuron {trial.neuron}: {trial.before:.9g} became {trial.after:.9g}\n" in out
    assert f"outcome: {trial.outcome.name.lower()}" in out
    for label in range(4):
        assert f"{label:5d} {float(trial.golden[label]):14.7g} {float(trial.faulty[label]):14.7g}" in out
    assert "no trial 90" in fails(["replay", str(folder), "--site", "fc", "--trial", "90", *model_and_data], capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layers", "fc", "layer4.*"], "No fault site is named 'layer4.*'; the model's sites are: conv, fc"),
        (["--protocol", "goldeneye"], "measure the ranges"),
        (["--data", "absent.npz"], "There is no"),
        (["--device", "warp"], "'warp' cannot be used"),
        (["--model", "resnet50"], "No model is named 'resnet50'; expected torchvision:NAME"),
        (["--images", "0"], "--images must be a whole number of at least 1"),
    ],
)
def test_a_wrong_option_ends_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert message in fails([*arguments(tmp_path / "c"), *options], capsys)
    assert not (tmp_path / "c").exists()


def test_goldeneye_without_calibration_names_the_missing_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "pass --calibration" in fails([*arguments(tmp_path / "c"), "--protocol", "goldeneye"], capsys)


def test_an_error_of_the_system_names_the_file_without_a_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "names.json"
    error = fails(["embed", "--classes", str(missing), "--output", str(tmp_path / "e.safetensors")], capsys)
    assert error == f"resilient-heads: {missing}: No such file or directory\n"


@pytest.mark.parametrize("command", ["merge", "report"])
def test_a_folder_without_a_campaign_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert "does not hold a campaign" in fails([command, str(tmp_path)], capsys)


def test_half_a_launcher_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    assert "must both be whole numbers" in fails(arguments(tmp_path / "c"), capsys)


def test_the_folder_of_another_campaign_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = arguments(tmp_path / "c")
    assert main([*words, "--layers", "f?"]) == 0
    assert [site.site.name for site in rh.CampaignResult.load(tmp_path / "c").sites] == ["fc"]
    assert "another campaign: sites is" in fails(words, capsys)


def test_a_damaged_file_of_trials_is_reported_and_replaced(tmp_path: Path) -> None:
    words, chunk = arguments(tmp_path / "c"), tmp_path / "c/trials/chunk-000001.parquet"
    assert main(words) == 0
    before = chunk.read_bytes()
    chunk.write_bytes(before[:-4])
    with pytest.warns(DamagedChunkWarning, match="is damaged .* run again"):
        assert main(words) == 0
    assert chunk.read_bytes() == before


def test_a_warning_is_printed_in_one_line() -> None:
    usual = warnings.formatwarning
    with one_line_warnings():
        line = warnings.formatwarning(DamagedChunkWarning("It is damaged."), DamagedChunkWarning, "x.py", 3)
    assert line == "resilient-heads: It is damaged.\n"
    assert warnings.formatwarning is usual


@pytest.mark.parametrize("words", [["campaign"], ["demo", "--protocol", "golden"], ["replay", "folder"], []])
def test_wrong_usage_has_exit_code_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2


def test_goldeneye_takes_its_ranges_from_the_calibration_images(tmp_path: Path) -> None:
    words, folder = arguments(tmp_path / "c"), tmp_path / "c"
    assert main([*words, "--protocol", "goldeneye", "--calibration", str(tmp_path / "images.npz")]) == 0
    result = rh.CampaignResult.load(folder)
    expected = campaign(None, protocol="goldeneye", calibration=labelled()[0])
    assert [site.range_limit for site in result.sites] == [site.range_limit for site in expected.sites]
    assert result.config == expected.config


def test_ctrl_c_has_its_own_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("resilient_heads.campaign.result.store.CampaignFolder.write", interrupted)
    assert main(arguments(tmp_path / "c")) == 130


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
    model, preprocessing = named_model("torchvision:resnet18", pretrained=False)
    images, labels = read_images(pictures, preprocessing)
    assert torch.equal(images[6], expected)
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert not model.training


def test_published_weights_are_read_without_running_code(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = torchvision.models.squeezenet1_1().state_dict()
    asked: dict = {}

    def download(url: str, **options: object) -> dict:
        asked.update(options, url=url)
        return weights

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    model, _ = named_model("torchvision:squeezenet1_1", pretrained=True)
    assert asked["weights_only"] is True
    assert asked["check_hash"] is True
    assert torch.equal(model.classifier[1].weight, weights["classifier.1.weight"])
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: 1 / 0)
    with pytest.raises(ModelError, match="could not be downloaded; pass --checkpoint: ZeroDivisionError"):
        named_model("torchvision:squeezenet1_1", pretrained=True)


def test_a_wrapped_models_checkpoint_is_loaded(tmp_path: Path) -> None:
    words = arguments(tmp_path / "c")
    wrapped = rh.wrap_model(Net(), embeddings=rh.ClassEmbeddings(torch.randn(4, 6), tuple("abcd")))
    embeddings = rh.ClassEmbeddings(torch.randn(4, 6), tuple("abcd")).save(tmp_path / "e.safetensors")
    save_file(wrapped.state_dict(), tmp_path / "w.safetensors")
    with torch.no_grad():
        labels = wrapped.eval()(labelled()[0]).argmax(dim=1)
    np.savez(tmp_path / "images.npz", images=labelled()[0].numpy(), labels=labels.numpy())
    words += ["--wrap", str(embeddings), "--checkpoint", str(tmp_path / "w.safetensors"), "--trials-per-site", "8"]
    assert main(words) == 0
    result = rh.CampaignResult.load(tmp_path / "c")
    assert "fc.projection" in result.record.layers
    assert result.golden.correct.all()


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
        read_images(pictures, named_model(f"hf:{tmp_path / 'vit'}", pretrained=True)[1])
    processor = transformers.ViTImageProcessor(
        size={"height": 16, "width": 16}, image_mean=[0.1] * 3, image_std=[2.0] * 3
    )
    processor.save_pretrained(tmp_path / "vit")
    loaded, preprocessing = named_model(f"hf:{tmp_path / 'vit'}", pretrained=True)
    assert preprocessing.mean == (0.1, 0.1, 0.1)
    images, _ = read_images(pictures, preprocessing)
    assert images.shape == (12, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded(images).logits, model(images).logits)
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
    with pytest.raises(ModelError, match="cannot load an image classifier"):
        named_model(f"hf:{tmp_path}", pretrained=True)


def test_models_of_timm_bring_their_preprocessing() -> None:
    pytest.importorskip("timm")
    model, preprocessing = named_model("timm:resnet10t", pretrained=False, classes=7)
    assert preprocessing.mean == (0.485, 0.456, 0.406)
    assert preprocessing.transform(image.new("RGB", (300, 400))).shape == (3, 176, 176)
    assert model(torch.zeros(1, 3, 176, 176)).shape == (1, 7)
    with pytest.raises(ModelError, match="timm cannot make 'resnet10x'"):
        named_model("timm:resnet10x", pretrained=False)


SOURCE = "import beside\nmodel = 3\ndef bad(): return 3\ndef worse(): return 1 / 0\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:resnet19", "cannot make a classifier 'resnet19'"),
        ("absent.py:net", "There is no file"),
        ("mine.py:absent", "has no function 'absent'"),
        ("mine.py:model", "has no function 'model'"),
        ("mine.py:bad", "returned a int; expected"),
        ("mine.py:worse", "failed: ZeroDivisionError: division by zero"),
        ("broken.py:net", r"cannot be run: ModuleNotFoundError: No module named 'no_such_module'"),
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


class Code:
    """Would run on unpickling."""

    def __reduce__(self) -> tuple:
        return (exec, ("raise SystemExit('pickle ran')",))


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "a.ckpt", "module.pt"])
def test_a_checkpoint_is_read_and_unwrapped(tmp_path: Path, name: str) -> None:
    state = net(3).state_dict()
    wrapped = {"model": {f"_orig_mod.{key}": tensor for key, tensor in state.items()}, "epoch": 3}
    prefixed = {f"module.{key}": tensor for key, tensor in state.items()}
    if name == "a.safetensors":
        save_file(state, tmp_path / name)
    else:
        torch.save({"a.pt": state, "a.ckpt": wrapped, "module.pt": prefixed}[name], tmp_path / name)
    read = read_checkpoint(tmp_path / name)
    assert {key: tensor.tolist() for key, tensor in read.items()} == {key: t.tolist() for key, t in state.items()}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("code.pt", Code(), "cannot be read as weights: UnpicklingError"),
        ("text.pt", None, "cannot be read as weights"),
        ("text.safetensors", None, "cannot be read as weights"),
        ("list.pt", [1, 2], "holds no state dict"),
        ("empty.pt", {}, "holds no state dict"),
    ],
)
def test_a_file_without_weights_is_refused(tmp_path: Path, name: str, content: object, message: str) -> None:
    (tmp_path / name).write_text("weights")
    if content is not None:
        torch.save(content, tmp_path / name)
    with pytest.raises(ModelError, match=message):
        read_checkpoint(tmp_path / name)


def test_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        read_checkpoint(tmp_path / "absent.pt")


PIXELS = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)
KNOWN = Preprocessing(mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0))


def test_uint8_arrays_are_normalised(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=np.array([4, 5], dtype=np.int32))
    images, labels = read_images(tmp_path / "a.npz", KNOWN)
    assert labels.tolist() == [4, 5]
    assert labels.dtype == torch.int64
    for channel, (mean, std) in enumerate(zip(KNOWN.mean, KNOWN.std, strict=True)):
        np.testing.assert_allclose(images[:, channel], (PIXELS[:, channel] / 255 - mean) / std, atol=1e-6)


def test_float32_arrays_are_taken_unchanged(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=PIXELS.astype(np.float32), labels=np.array([4, 5]))
    assert torch.equal(read_images(tmp_path / "a.npz", KNOWN)[0], torch.from_numpy(PIXELS.astype(np.float32)))
    assert read_images(tmp_path / "a.npz", KNOWN, most=1)[1].tolist() == [4]


@pytest.mark.parametrize(
    ("preprocessing", "message"),
    [
        (Preprocessing(), "pass --mean and --std"),
        (Preprocessing(mean=(0.5,), std=(0.5,)), "3 channels, found 1 means"),
    ],
)
def test_uint8_arrays_without_a_fitting_normalisation_are_refused(
    tmp_path: Path, preprocessing: Preprocessing, message: str
) -> None:
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=np.array([4, 5]))
    with pytest.raises(DataError, match=message):
        read_images(tmp_path / "a.npz", preprocessing)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": PIXELS}, "no .npz file with arrays"),
        ({"images": PIXELS, "labels": np.array([1])}, "expected"),
        ({"images": PIXELS.astype(float), "labels": np.array([1, 2])}, "float64"),
        ({"images": PIXELS, "labels": np.array([1.0, 2.0])}, "whole numbers"),
        ({"images": PIXELS, "labels": np.array([Code(), Code()], dtype=object)}, "no .npz file with arrays"),
    ],
)
def test_arrays_that_are_no_labelled_images_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read_images(tmp_path / "a.npz", KNOWN)


def test_a_text_file_is_no_array_file(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_text("text")
    with pytest.raises(DataError, match=r"no \.npz file"):
        read_images(tmp_path / "a.npz", KNOWN)


@pytest.fixture
def squares() -> Preprocessing:
    """Cut every picture to 16x16 pixels and normalise it."""
    chosen = preprocessing_from(resize=20, crop=16, mean=[0.5] * 3, std=[0.25] * 3)
    assert chosen is not None
    return chosen


def test_a_folder_of_pictures_is_read_at_even_distances(pictures: Path, squares: Preprocessing) -> None:
    images, labels = read_images(pictures, squares, most=3)
    assert images.shape == (3, 3, 16, 16)
    assert labels.tolist() == [0, 1, 2]
    assert images.mean(dim=(0, 2, 3)).abs().max() < 1


def test_pictures_of_different_sizes_are_refused(pictures: Path) -> None:
    with pytest.raises(DataError, match="differ in size; pass --resize and --crop"):
        read_images(pictures, preprocessing_from(resize=None, crop=None, mean=[0.0], std=[1.0]))


def test_a_damaged_picture_is_named(pictures: Path, squares: Preprocessing) -> None:
    (pictures / "bee/4.png").write_text("not a picture")
    with pytest.raises(DataError, match=r"bee/4\.png cannot be used: UnidentifiedImageError"):
        read_images(pictures, squares)


def test_a_folder_without_subfolders_is_refused(tmp_path: Path, squares: Preprocessing) -> None:
    with pytest.raises(DataError, match="no folder with a subfolder of images"):
        read_images(tmp_path, squares)


NO_OPTIONS = {"resize": None, "crop": None, "mean": None, "std": None}


@pytest.mark.parametrize("options", [{"mean": [0.1]}, {"mean": [0.1], "std": [0.0]}, {"resize": 0}, {"crop": -3}])
def test_wrong_options_of_preprocessing_are_refused(options: dict) -> None:
    with pytest.raises(ArgumentError, match="--"):
        preprocessing_from(**NO_OPTIONS | options)


def test_no_options_of_preprocessing_leave_it_to_the_model() -> None:
    assert preprocessing_from(**NO_OPTIONS) is None
