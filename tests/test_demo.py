import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

import resilient_heads as rh
from resilient_heads import cli, demo
from resilient_heads.demo import DemoOptions, run_demo
from resilient_heads.errors import ArgumentError, MissingExtraError


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the whole demo on a tenth of its images."""
    train, test = demo.digits(seed=0)
    few = [TensorDataset(*(tensor[:count] for tensor in data.tensors)) for data, count in ((train, 192), (test, 96))]
    folder = tmp_path_factory.mktemp("demo") / "made" / "by the demo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "digits", lambda seed: few)
        table = run_demo(DemoOptions(output=folder, trials_per_site=12, epochs=2))
    assert (folder / "table.md").read_text().find(table) > 0
    return folder


@pytest.mark.slow
def test_the_demo_writes_results_table_and_plot(output: Path) -> None:
    names = {path.name for path in output.iterdir()}
    campaigns = {f"{model}-{protocol}" for model in demo.NAMES for protocol in ("goldeneye", "raw")}
    assert names == campaigns | {"table.md", "layers.png"}
    assert (output / "layers.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.slow
def test_the_table_shows_the_rates_of_the_results(output: Path) -> None:
    table = (output / "table.md").read_text()
    for protocol in ("goldeneye", "raw"):
        result = rh.CampaignResult.load(output / f"text-guided-{protocol}")
        assert result.config.design == rh.UniformDesign(trials_per_site=12)
        sdc = result.scope("network").layer_averaged.sdc
        row = next(
            line
            for line in table.splitlines()
            if [c.strip() for c in line.split("|")[1:5]] == [protocol, "all layers", "layer-averaged", "SDC"]
        )
        assert f"{100 * sdc.value:.3g}% [" in row.split("|")[6]


def test_both_models_start_from_the_same_weights() -> None:
    baseline, text_guided = demo.build(seed=4)
    baseline_state, other = baseline.state_dict(), text_guided.state_dict()
    shared = [name for name in baseline_state if not name.startswith("fc.")]
    assert len(shared) == 120
    assert all(torch.equal(baseline_state[name], other[name]) for name in shared)


def test_the_split_is_stratified_and_disjoint() -> None:
    train, test = demo.digits(seed=0)
    assert (len(train), len(test)) == (1347, 450)
    assert train.tensors[0].shape[1:] == (3, 32, 32)
    assert min(torch.bincount(test.tensors[1])) >= 43


@pytest.mark.parametrize("device", ["nowhere", "meta"])
def test_an_unusable_device_is_refused(tmp_path: Path, device: str) -> None:
    with pytest.raises(ArgumentError, match=f"'{device}' cannot be used"):
        run_demo(DemoOptions(output=tmp_path, device=device))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_refused_with_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r'pip install "resilient-heads\[demo\]"'):
        demo.digits(seed=0)


def test_the_command_refuses_wrong_options_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["demo", "--trials-per-site", "0", "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("resilient-heads: --trials-per-site must be a whole number of at least 1")
    occupied = tmp_path / "file"
    occupied.write_text("")
    assert cli.main(["demo", "--output", str(occupied)]) == 1
    assert "cannot be made" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo", "--protocol", "golden"])
    assert stop.value.code == 2


def test_the_command_runs_as_a_module() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "resilient_heads", "--version"], capture_output=True, text=True, check=True
    )
    assert run.stdout == f"resilient-heads {rh.__version__}\n"


@pytest.mark.slow
def test_a_result_on_disk_names_its_protocol_and_environment(output: Path) -> None:
    record = json.loads((output / "baseline-raw" / "campaign.json").read_text())
    assert record["config"]["protocol"]["name"] == "raw"
    assert record["environment"]["torch"] == torch.__version__
    assert len(record["sites"]) == 21
