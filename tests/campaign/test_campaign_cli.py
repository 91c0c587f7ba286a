"""The commands campaign, merge, replay and report, and how they find models and images."""

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import resilient_heads as rh
from helpers.small_campaign import Net, arguments, campaign, labelled, net
from resilient_heads.cli import main, one_line_warnings
from resilient_heads.errors import DamagedFileWarning, ModelError

torchvision = pytest.importorskip("torchvision")
image = pytest.importorskip("PIL.Image")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


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
    (tmp_path / "c/result.parquet").unlink()
    with pytest.warns(DamagedFileWarning, match=r"chunk-000001\.parquet is damaged: .* writes it again"):
        assert main(words) == 0
    assert chunk.read_bytes() == before


def test_a_warning_is_printed_in_one_line() -> None:
    usual = warnings.formatwarning
    with one_line_warnings():
        line = warnings.formatwarning(DamagedFileWarning("It is damaged."), DamagedFileWarning, "x.py", 3)
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


def test_a_campaign_of_some_layers_prints_the_figures_of_the_sets_it_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for layers, present, absent in (([], "network", "nothing"), (["--layers", "fc"], "last", "network")):
        assert main([*arguments(tmp_path / present), "--trials-per-site", "8", *layers]) == 0
        shown = capsys.readouterr().out
        assert str(rh.CampaignResult.load(tmp_path / present).summary()) in shown
        assert f"\n{present} " in shown
        assert f"\n{absent} " not in shown


@pytest.mark.parametrize(
    ("width", "line"),
    [
        ("0.5", "The interval is as narrow as --until asks for."),
        ("0.001", "The interval is wider than --until asks for: sdc is "),
        ("1%", "The interval is wider than --until asks for: sdc is "),
    ],
)
def test_a_campaign_says_whether_it_reached_the_width(
    width: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments(tmp_path / "c"), "--trials-per-site", "8", "--until", f"sdc:{width}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(line)


def test_ctrl_c_has_its_own_exit_code_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("resilient_heads.campaign.result.store.CampaignFolder.write", interrupted)
    assert main(arguments(tmp_path / "c")) == 130
    expected = "resilient-heads: interrupted; to continue, run the same command again\n"
    assert capsys.readouterr().err.endswith(expected)


def test_a_wrapped_models_checkpoint_is_loaded(tmp_path: Path) -> None:
    words = arguments(tmp_path / "c")
    wrapped = rh.wrap_model(Net(), embeddings=rh.ClassEmbeddings(torch.randn(4, 6), tuple("abcd")), classifier="fc")
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


@pytest.mark.parametrize("command", ["demo", "campaign", "merge", "replay", "report", "embed", "embeddings"])
def test_every_command_says_what_it_does(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    usage, _, rest = capsys.readouterr().out.partition("\n\n")
    assert usage.startswith(f"usage: resilient-heads {command}")
    assert rest.partition("\n\n")[0].replace("\n", " ").endswith(".")


def test_a_model_of_one_channel_is_told_how_to_read_grey_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        (tmp_path / "data" / name).mkdir(parents=True)
        image.fromarray(np.full((8, 8), 100, np.uint8)).save(tmp_path / "data" / name / "1.png")
    (tmp_path / "grey.py").write_text(
        "from torch import nn\n"
        "def grey():\n"
        "    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))\n"
    )
    words = ["campaign", "--model", f"{tmp_path / 'grey.py'}:grey", "--data", str(tmp_path / "data"), "--crop", "8"]
    error = fails([*words, "--protocol", "raw", "--output", str(tmp_path / "c"), "--quiet"], capsys)
    assert "cannot run on a batch of shape (2, 3, 8, 8)" in error
    assert "pass an .npz file with grey images (N, 1, H, W) and labels (N,)." in error


def test_exit_codes_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "Exit codes: 0 done, 1 an error with a message, 2" in capsys.readouterr().out


MEANS = ["--mean", "0", "0", "0", "--std", "1", "1", "1"]


def folder_words(tmp_path: Path, classes: dict[str, int], bias: list[float], images: int = 4) -> list[str]:
    """Write pictures of classes, with their numbers, and a model with one bias a class; return the command line."""
    for name, count in classes.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(count):
            image.new("RGB", (4, 4)).save(tmp_path / "data" / name / f"{number}.png")
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\ndef net():\n    torch.manual_seed(0)\n"
        f"    model = nn.Sequential(nn.Flatten(), nn.Linear(48, {len(bias)}))\n"
        f"    model[1].bias.data = torch.tensor({bias})\n    return model\n"
    )
    words = f"campaign --model {tmp_path / 'net.py'}:net --data {tmp_path / 'data'} --protocol raw --quiet"
    return [*words.split(), "--trials-per-site", "4", "--output", str(tmp_path / "c"), *MEANS]


def test_classes_and_accuracy_stand_before_the_first_trial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = folder_words(tmp_path, {"ant": 30, "bee": 1}, [9.0, 0.0])
    (tmp_path / "data" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "data" / "ant" / "notes.txt").touch()
    (tmp_path / "data" / "bee" / "again.png").symlink_to("0.png")
    assert main(words) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "2 classes with 1 to 30 of 31 images each: 0 ant to 1 bee; order from the sorted names"
    assert lines[1] == "Left out: 1 files that are no pictures (.txt)"
    assert lines[2] == "Left out: 1 links to pictures or folders that count already"
    assert lines[3].startswith("fault-free accuracy 96.77% [")
    assert "is not clearly above chance (96.77%" in err  # the model calls every image "ant"


def test_a_model_clearly_above_chance_gives_no_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path / "c")) == 0
    out, err = capsys.readouterr()
    assert "fault-free accuracy 100.00% [64.40%, 100.00%]" in out
    assert "classes with" in out
    assert "warning" not in err


def test_fewer_folders_than_classes_are_refused_unless_the_user_names_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = folder_words(tmp_path, {"ant": 2, "bee": 2}, [9.0, 0.0, 0.0])
    message = fails(words, capsys).splitlines()[0]
    assert "The folder has 2 classes and the model 3, so it is unclear which they are; pass --class-index" in message
    (tmp_path / "index.json").write_text('{"Ant": 2, "bee": 0}')
    assert main([*words, "--class-index", str(tmp_path / "index.json")]) == 0
    assert rh.CampaignResult.load(tmp_path / "c").golden.labels.tolist() == [2, 2, 0, 0]
    out = capsys.readouterr().out
    assert f"0 bee to 2 ant; order from {tmp_path / 'index.json'}" in out


def test_an_order_that_contradicts_the_models_labels_is_followed_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = folder_words(tmp_path, {"cat": 2, "airplane": 2}, [9.0, 0.0])
    source = (tmp_path / "net.py").read_text().replace("return model", "return rh.wrap_model(model, embeddings=EMB)")
    (tmp_path / "net.py").write_text(
        f"import torch, resilient_heads as rh\nEMB = rh.ClassEmbeddings(torch.eye(2, 4), ('cat', 'airplane'))\n{source}"
    )
    code = main([*words, "--layers", "1*", "--sort", "name"])
    out, err = capsys.readouterr()
    assert "2 classes with 2 of 4 images each: 0 airplane (cat) to 1 cat (airplane)" in out, err
    assert "warning: 'airplane' is class 0 in the sorted names, but class 1 in the model's labels" in err
    assert code == 0
    assert main([*words[: -len(MEANS) - 1], str(tmp_path / "d"), *MEANS, "--layers", "1*"]) == 0
    out, err = capsys.readouterr()
    assert "0 cat to 1 airplane; order from the model's labels" in out
    assert "in the model's labels" not in err


def test_class_names_outside_the_terminals_alphabet_are_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, raw = folder_words(tmp_path, {"Käfer": 2, "虎": 2}, [9.0, 0.0]), io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert main(words) == 0
    assert b"0 K\\xe4fer to 1 \\u864e" in raw.getvalue()


def test_options_that_would_change_nothing_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = arguments(tmp_path / "c")
    assert "--mean, --std would change nothing" in fails([*words, *MEANS], capsys)
    assert "--resize would change nothing" in fails([*words, "--resize", "8"], capsys)
    assert "the labels of an .npz file are numbers" in fails([*words, "--sort", "name"], capsys)


def test_wrap_says_what_to_do_in_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--classes sets the number of classes" in fails([*arguments(tmp_path / "c"), "--wrap", "cifar10"], capsys)


def test_wrap_shows_the_model_an_image_where_it_needs_one(tmp_path: Path) -> None:
    embeddings = rh.ClassEmbeddings(torch.randn(4, 6), tuple("abcd")).save(tmp_path / "e.safetensors")
    words = [*arguments(tmp_path / "c"), "--wrap", str(embeddings), "--layers", "fc*"]
    with pytest.raises(ModelError, match="Nothing shows that Net is a classifier"):
        rh.wrap_model(Net(), embeddings=rh.ClassEmbeddings.load(embeddings))
    code = main(words)
    assert code in (0, 1)  # the new head is random: it may classify no image correctly
    assert code == 1 or "fc.projection" in rh.CampaignResult.load(tmp_path / "c").record.layers
