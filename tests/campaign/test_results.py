import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import resilient_heads as rh
from helpers.grid import grid
from helpers.small_campaign import files
from resilient_heads.campaign.trials.outcomes import Outcome
from resilient_heads.campaign.trials.rates import RATES
from resilient_heads.errors import ArgumentError, DamagedFileWarning, ResultError
from resilient_heads.statistics.intervals import clopper_pearson

Data = tuple[Tensor, Tensor]


@pytest.fixture
def result(small_net: nn.Module, labelled: Data) -> rh.CampaignResult:
    return rh.run_campaign(small_net, labelled, calibration=labelled, trials_per_site=300, progress=False, seed=3)


def test_save_and_load_give_the_same_result(result: rh.CampaignResult, tmp_path: Path) -> None:
    loaded = rh.CampaignResult.load(result.save(tmp_path / "deep" / "r"))
    assert loaded.config == result.config
    assert loaded.sites == result.sites
    assert loaded.uninjectable == result.uninjectable
    for name, column in result.trials.columns.items():
        assert loaded.trials.columns[name].tobytes() == column.tobytes()
    assert loaded.summary() == result.summary()
    assert files(result.save(tmp_path / "again")) == files(tmp_path / "deep" / "r")
    assert list(files(tmp_path / "again")) == ["campaign.json", "golden.parquet", "result.parquet"]


@pytest.mark.parametrize("length", [0, 5, 100, 4000, -1])
def test_a_truncated_result_is_refused(result: rh.CampaignResult, tmp_path: Path, length: int) -> None:
    path = result.save(tmp_path / "r") / "result.parquet"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ResultError, match=r"result\.parquet is damaged: .*Run the campaign's command again"):
        rh.CampaignResult.load(tmp_path / "r")


def test_a_result_of_another_version_is_refused(result: rh.CampaignResult, tmp_path: Path) -> None:
    record = result.save(tmp_path / "r") / "campaign.json"
    values = json.loads(record.read_text())
    del values["sha256"]  # as in versions 1 to 6
    record.write_text(json.dumps({**values, "format": "resilient_heads.campaign/6"}))
    with pytest.raises(ResultError, match=r"format is 'resilient_heads.campaign/6'.*reads .*campaign/7.*run the"):
        rh.CampaignResult.load(tmp_path / "r")


def test_a_part_of_the_trials_is_not_saved_as_the_whole(result: rh.CampaignResult, tmp_path: Path) -> None:
    before = files(result.save(tmp_path / "r"))
    part = dataclasses.replace(result, trials=result.trials.where(result.trials.trial < 200))
    for folder in (tmp_path / "r", tmp_path / "part"):
        with pytest.raises(ResultError, match=r"holds 600 trials, which are not all trials .*to_pandas"):
            part.save(folder)
    assert files(tmp_path / "r") == before
    assert not (tmp_path / "part").exists()


def test_a_folder_is_saved_to_only_once(
    result: rh.CampaignResult, small_net: nn.Module, labelled: Data, tmp_path: Path
) -> None:
    other = rh.run_campaign(small_net, labelled, protocol="raw", trials_per_site=20, progress=False)
    before = files(result.save(tmp_path / "r"))
    with pytest.raises(ResultError, match="holds another campaign"):
        other.save(tmp_path / "r")
    assert files(result.save(tmp_path / "r")) == before


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    foreign = rh.load_embeddings("digits").save(tmp_path / "e.safetensors")
    with pytest.raises(ResultError, match="is a file; expected the folder of a campaign"):
        rh.CampaignResult.load(foreign)
    with pytest.raises(ResultError, match="does not hold a campaign"):
        rh.CampaignResult.load(tmp_path)


def test_a_trial_without_outcome_is_no_result(result: rh.CampaignResult, tmp_path: Path) -> None:
    result.trials.outcome[305] = 255
    with pytest.raises(ResultError, match="outcome holds the code 255; expected 0 to 3"):
        result.save(tmp_path / "r")
    with pytest.raises(ResultError, match="incomplete"):
        rh.CampaignResult(record=result.record, trials=result.trials)


def test_layers_by_hand(result: rh.CampaignResult) -> None:
    layers = result.by_layer(level=0.95)
    assert [layer.name for layer in layers] == ["conv1", "conv2", "fc"]
    for row, layer in enumerate(layers):
        outcomes = grid(result)["outcome"][row]
        for outcome in Outcome:
            share = float((outcomes == outcome).mean())
            estimate = layer.figures[outcome.name.lower()]
            assert estimate.value == pytest.approx(share)
            assert estimate.low <= share <= estimate.high
        sdc = float((outcomes == Outcome.SDC).mean())
        alone = clopper_pearson(round(sdc * 300), 300, level=0.95)
        assert layer.figures.sdc.low <= alone.low + 1e-12
        assert layer.figures.sdc.high >= alone.high - 1e-12
        assert layer.figures.delta_loss.value == pytest.approx(grid(result)["delta_loss"][row].mean())


def test_scopes_by_hand(result: rh.CampaignResult) -> None:
    bits = np.array([216, 216, 5]) * 32
    sdc = (grid(result)["outcome"] == Outcome.SDC).mean(axis=1)
    network = result.scope("network")
    assert network.layer_averaged.sdc.value == pytest.approx(sdc.mean())
    assert network.bit_weighted.sdc.value == pytest.approx((sdc * bits).sum() / bits.sum())
    assert network.harmful_bits().value == pytest.approx((sdc * bits).sum())
    assert network.fit(raw_fit_per_megabit=600).value == pytest.approx((sdc * bits).sum() / 2**20 * 600)
    losses = grid(result)["delta_loss"].mean(axis=1)
    assert network.bit_weighted.delta_loss.value == pytest.approx((losses * bits).sum() / bits.sum())
    assert result.scope("last").layer_averaged.sdc.value == pytest.approx(sdc[2])


def test_bits_share_out_all_trials(result: rh.CampaignResult) -> None:
    bits = result.by_bit()
    assert [found.bit for found in bits] == list(range(32))
    assert sum(found.trials for found in bits) == result.trials.outcome.size
    assert [found.role for found in bits] == ["mantissa"] * 23 + ["exponent"] * 8 + ["sign"]
    top = bits[30]
    struck = result.trials.bit == 30
    assert top.rates["sdc"].value == pytest.approx((result.trials.outcome[struck] == Outcome.SDC).mean())
    assert sum(found.trials for found in result.by_bit(["fc"])) == 300


def test_a_bit_that_was_never_drawn_has_no_rate(small_net: nn.Module, labelled: Data) -> None:
    few = rh.run_campaign(small_net, labelled, protocol="raw", trials_per_site=2, layers=["fc"], progress=False)
    undrawn = [found for found in few.by_bit() if not found.trials]
    assert len(undrawn) >= 30
    assert np.isnan(undrawn[0].rates["sdc"].value)
    assert (undrawn[0].rates["sdc"].low, undrawn[0].rates["sdc"].high) == (0, 1)


def test_unknown_names_are_refused(result: rh.CampaignResult) -> None:
    with pytest.raises(ArgumentError, match=r"no site named \['fc9'\]"):
        result.by_bit(["fc9"])
    with pytest.raises(ArgumentError, match=r'name must be "last", .* found "head"'):
        result.scope("head")
    with pytest.raises(ArgumentError, match=r'metric must be .* found "trials"'):
        result.by_layer()[0].figures["trials"]
    with pytest.raises(ArgumentError, match=r'metric must be "masked", .* found "delta_loss"'):
        result.scope("last").harmful_bits("delta_loss")
    with pytest.raises(ArgumentError, match="level"):
        result.summary(level=2)


def test_a_part_is_never_passed_off_as_the_whole(small_net: nn.Module, labelled: Data) -> None:
    def run(*layers: str) -> rh.CampaignResult:
        chosen = layers or None
        return rh.run_campaign(small_net, labelled, protocol="raw", trials_per_site=20, layers=chosen, progress=False)

    whole, last, middle = run(), run("fc"), run("conv2")
    assert set(last.summary().scopes) == {"last", "last_all"}
    assert middle.summary().scopes == {}
    with pytest.raises(ResultError, match="left out conv1, conv2"):
        last.scope("network")
    assert {found.scope for found in rh.compare(whole, last).improvements} == {"last", "last_all"}
    with pytest.raises(ResultError, match="no scope in common"):
        rh.compare(whole, middle)
    assert "- excluded by layers=: conv1, fc." in rh.report.layer_table(middle)


def test_an_interval_from_too_few_images_is_none(small_net: nn.Module, labelled: Data) -> None:
    few = (labelled[0][1:4], labelled[1][1:4])
    result = rh.run_campaign(small_net, few, protocol="raw", trials_per_site=50, progress=False)
    loss = result.by_layer()[0].figures.delta_loss
    assert np.isnan([loss.low, loss.high]).all()


def test_ranges_of_other_images_are_not_compared(
    result: rh.CampaignResult, small_net: nn.Module, labelled: Data
) -> None:
    other = rh.run_campaign(small_net, labelled, calibration=labelled[0] * 2, trials_per_site=20, progress=False)
    with pytest.raises(ResultError, match="ranges from different images"):
        rh.compare(result, other)


def test_rates_that_overlap_are_counted_by_their_definition(result: rh.CampaignResult) -> None:
    trials = result.trials
    assert set(RATES) == {"masked", "tolerable", "sdc", "due", "sdc_5", "sdc_10", "sdc_20"}
    assert not trials.events("sdc_5").any()  # five classes: nothing can fall out of the top five
    assert (trials.events("sdc_20") <= trials.events("sdc_10")).all()
    np.testing.assert_array_equal(
        trials.events("sdc_10"), (np.abs(trials.confidence_change) > 0.1) & (trials.outcome != Outcome.DUE)
    )


def test_nan_losses_are_reported(small_net: nn.Module, labelled: Data) -> None:
    raw = rh.run_campaign(small_net, labelled, protocol="raw", trials_per_site=400, progress=False)
    for row, layer in enumerate(raw.by_layer()):
        nan = np.isnan(grid(raw)["delta_loss"][row])
        assert layer.figures.nan_losses == nan.sum()
        assert (grid(raw)["outcome"][row][nan] == Outcome.DUE).all()


def test_a_table_has_a_row_for_each_trial_with_readable_names(result: rh.CampaignResult) -> None:
    table = result.to_pandas()
    assert len(table) == len(result.trials)
    assert list(table.layer.unique()) == ["conv1", "conv2", "fc"]
    assert (table.outcome == "sdc").sum() == result.trials.events("sdc").sum()
    np.testing.assert_array_equal(table.delta_loss, result.trials.delta_loss)


def test_figures_as_json_are_those_of_the_summary(result: rh.CampaignResult) -> None:
    content = json.loads(json.dumps(result.to_dict(level=0.95), allow_nan=False))
    summary = result.summary(level=0.95)
    assert content["config"]["seed"] == 3
    assert content["environment"]["torch"] == torch.__version__
    assert content["accuracy"]["value"] == summary.accuracy.value
    network = content["scopes"]["network"]["bit_weighted"]["sdc"]
    assert (network["low"], network["high"]) == (
        summary.network.bit_weighted.sdc.low,
        summary.network.bit_weighted.sdc.high,
    )
    assert [layer["name"] for layer in content["layers"]] == ["conv1", "conv2", "fc"]


def test_an_unknown_figure_is_none_in_json(small_net: nn.Module, labelled: Data) -> None:
    few = (labelled[0][1:4], labelled[1][1:4])
    raw = rh.run_campaign(small_net, few, protocol="raw", trials_per_site=50, progress=False)
    assert np.isnan(raw.by_layer()[0].figures.delta_loss.low)
    assert raw.to_dict()["layers"][0]["figures"]["delta_loss"]["low"] is None


def test_compare_a_model_with_itself(result: rh.CampaignResult) -> None:
    comparison = rh.compare(result, result)
    for improvement in comparison.improvements:
        if improvement.baseline.value > 0:
            assert improvement.ratio.value == 1
            assert 1 in improvement.ratio
        else:
            assert np.isnan(improvement.ratio.value)
            assert improvement.ratio.high == np.inf
    assert comparison.accuracy_gain.value == 0
    found = comparison.improvement("network", "delta_loss")
    assert (found.ratio.low, found.ratio.high) == (1, 1)
    with pytest.raises(ArgumentError, match="expected one of"):
        comparison.improvement("network", "masked")


def test_compare_sees_a_difference(small_net: nn.Module, labelled: Data) -> None:
    def run() -> rh.CampaignResult:
        return rh.run_campaign(small_net, labelled, protocol="raw", trials_per_site=500, progress=False)

    fragile = run()
    with torch.no_grad():
        small_net.fc.weight.zero_()
        small_net.fc.bias.copy_(torch.tensor([9.0, 0, 0, 0, 0]))
    labelled[1].zero_()
    sturdy = run()
    with pytest.raises(ResultError, match="different images"):
        rh.compare(fragile, sturdy)
    object.__setattr__(sturdy.record, "data_sha256", fragile.record.data_sha256)
    improvement = rh.compare(fragile, sturdy).improvement("network", "sdc")
    assert improvement.ratio.low > 1
    comparison = rh.compare(fragile, sturdy)
    assert [found.layer for found in comparison.differing()] == ["fc"]
    for found in comparison.layers:  # a single look at a layer says so as well, and may say it of more layers
        assert found.p_value <= found.adjusted
        assert (0 in found.difference) == (found.p_value > 0.01)
    assert {found.metric for found in comparison.layers} == {"sdc", "due"}
    assert not rh.compare(fragile, fragile).differing()
    with pytest.raises(ArgumentError, match="compared by sdc and due"):
        comparison.differing("delta_loss")


def test_compare_refuses_different_protocols(result: rh.CampaignResult, small_net: nn.Module, labelled: Data) -> None:
    raw = rh.run_campaign(small_net, labelled, protocol="raw", trials_per_site=50, progress=False)
    with pytest.raises(ResultError, match="different protocols"):
        rh.compare(result, raw)


class Products(nn.Module):
    """Multiplies with a parameter that belongs to no layer: 16 multiply-accumulates beside 20 of the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4) * 2)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x @ self.weight)


def test_the_coverage_stands_beside_every_figure_of_the_network(tmp_path: Path) -> None:
    model, images = Products().eval(), torch.randn(8, 4)
    data = images, model(images).argmax(dim=1)
    result = rh.run_campaign(model, data, protocol="raw", trials_per_site=64, progress=False)
    loaded = rh.CampaignResult.load(result.save(tmp_path / "r"))
    summary = loaded.summary()
    assert summary.coverage == loaded.coverage == result.coverage == rh.find_sites(model, images).coverage
    assert summary.coverage.macs == pytest.approx(20 / 36)
    assert summary.coverage.bits == pytest.approx(5 / 9)
    assert summary.network.part == "of the covered part: 55.55 % of multiply-accumulates"
    assert str(summary.network).startswith("network (of the covered part: 55.55 % of multiply-accumulates): 1 sites")
    assert "\nfigures of the network are of the covered part: 55.55 % of multiply-accumulates\n" in str(summary)
    assert summary.last.part == ""
    assert "coverage: 55.55 % of multiply-accumulates, 55.55 % of activation bits; not covered: mm in" in str(summary)
    expected = (
        "- coverage: 55.55 % of multiply-accumulates, 55.55 % of activation bits; not covered: mm in the model itself"
    )
    assert expected in rh.report.layer_table(loaded)
    assert json.loads(json.dumps(loaded.to_dict()))["coverage"]["uncovered"][0]["operator"] == "aten::mm"
    whole = nn.Sequential(nn.Linear(4, 5)).eval()
    other = rh.run_campaign(whole, data, protocol="raw", trials_per_site=64, progress=False)
    assert other.summary().network.part == ""
    (note,) = [note for note in rh.compare(loaded, other).notes if note.startswith("coverage: ")]
    assert "baseline 55.55 % of multiply-accumulates" in note
    assert "candidate 100 % of multiply-accumulates" in note


def test_a_changed_coverage_is_noticed(tmp_path: Path) -> None:
    model, images = Products().eval(), torch.randn(8, 4)
    result = rh.run_campaign(
        model, (images, model(images).argmax(dim=1)), protocol="raw", trials_per_site=8, progress=False
    )
    path = result.save(tmp_path / "r") / "campaign.json"
    content = json.loads(path.read_text())
    content["coverage"]["macs"] = 1.0
    path.write_text(json.dumps(content, sort_keys=True, indent=1) + "\n")
    with pytest.warns(DamagedFileWarning, match=r"campaign\.json is damaged"):
        loaded = rh.CampaignResult.load(tmp_path / "r")
    assert loaded.coverage == result.coverage
