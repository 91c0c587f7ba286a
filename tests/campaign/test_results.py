from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import resilient_heads as rh
from helpers.grid import grid
from resilient_heads.campaign.trials.columns import RATES
from resilient_heads.campaign.trials.outcomes import Outcome
from resilient_heads.errors import ArgumentError, ResultError
from resilient_heads.statistics.intervals import clopper_pearson

Data = tuple[Tensor, Tensor]


@pytest.fixture
def result(small_net: nn.Module, labelled: Data) -> rh.CampaignResult:
    return rh.run_campaign(small_net, labelled, calibration=labelled, trials_per_site=300, progress=False, seed=3)


def test_save_and_load_give_the_same_result(result: rh.CampaignResult, tmp_path: Path) -> None:
    loaded = rh.CampaignResult.load(result.save(tmp_path / "deep" / "r.parquet"))
    assert loaded.config == result.config
    assert loaded.sites == result.sites
    assert loaded.uninjectable == result.uninjectable
    for name, column in result.trials.columns.items():
        assert loaded.trials.columns[name].tobytes() == column.tobytes()
    assert loaded.summary() == result.summary()
    assert result.save(tmp_path / "again").read_bytes() == (tmp_path / "deep" / "r.parquet").read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_damaged_files_are_refused(result: rh.CampaignResult, tmp_path: Path) -> None:
    path = result.save(tmp_path / "r.parquet")
    whole = path.read_bytes()
    for length in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ResultError, match="truncated"):
            rh.CampaignResult.load(path)
    for old, new, message in (
        (b"resilient_heads.campaign/6", b"resilient_heads.campaign/9", "format is 'resilient_heads.campaign/9'"),
        (b"resilient_heads.record", b"resilient_heads.racord", "not a campaign result"),
        (b"resilient_heads.golden", b"resilient_heads.galden", "golden run|not a whole Parquet"),
        (b"resilient_heads.sha256", b"resilient_heads.sha257", "their sha256 differs"),
        (b'"uninjectable"', b'"uninjectible"', "record is damaged"),
    ):
        assert old in whole
        path.write_bytes(whole.replace(old, new))
        with pytest.raises(ResultError, match=message):
            rh.CampaignResult.load(path)
    foreign = rh.load_embeddings("digits").save(tmp_path / "e.safetensors")
    with pytest.raises(ResultError, match=r"not a campaign"):
        rh.CampaignResult.load(foreign)
    with pytest.raises(FileNotFoundError):
        rh.CampaignResult.load(tmp_path / "absent")


def test_a_trial_without_outcome_is_no_result(result: rh.CampaignResult, tmp_path: Path) -> None:
    result.trials.outcome[305] = 255
    with pytest.raises(ResultError, match="outcome holds 255"):
        result.save(tmp_path / "r.parquet")
    with pytest.raises(ResultError, match="incomplete"):
        rh.CampaignResult.of(result.record, result.trials)


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
    with pytest.raises(ArgumentError, match="struck site is named"):
        result.by_bit(["fc9"])
    with pytest.raises(ArgumentError, match="No scope is named"):
        result.scope("head")
    with pytest.raises(ArgumentError, match="No figure is named 'trials'"):
        result.by_layer()[0].figures["trials"]
    with pytest.raises(ArgumentError, match="counted by a rate"):
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
    with pytest.raises(ResultError, match="conv1, conv2 was left out"):
        last.scope("network")
    assert {found.scope for found in rh.compare(whole, last).improvements} == {"last", "last_all"}
    with pytest.raises(ResultError, match="share no scope"):
        rh.compare(whole, middle)
    assert "- not struck: conv1: left out by layers=." in rh.report.layer_table(middle)


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
    object.__setattr__(sturdy.config, "data_sha256", fragile.config.data_sha256)
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
