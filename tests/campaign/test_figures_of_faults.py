"""Every figure of a campaign, for faults of every kind: the right number by hand, or an error that says why not."""

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import resilient_heads as rh
from resilient_heads import cli
from resilient_heads.campaign.trials.outcomes import Outcome
from resilient_heads.campaign.trials.rates import RATES
from resilient_heads.errors import ArgumentError, ResultError
from resilient_heads.faults import (
    AllElements,
    ErrorRate,
    Flip,
    LayerMaximum,
    Negate,
    RandomElements,
    RandomValue,
    RandomWord,
    SetValue,
    StuckAt,
)
from resilient_heads.formats import AdaptivFloat, AffineInteger, BlockFloat, FixedPoint, FloatingPoint

NEURONS = np.array([48, 16, 5])


@dataclass(frozen=True)
class Kind:
    """A fault, the number of its equally likely places at each of the three sites, and its bits if it is one bit."""

    fault: rh.FaultModel
    places: Any
    bits: range | tuple[int, ...] | None = None


def flip(**choices: Any) -> rh.FaultModel:
    return rh.FaultModel(**choices)


VALUES, TENSOR = NEURONS, np.ones(3)
KINDS = {
    "a flip": Kind(flip(), NEURONS * 32, range(32)),
    "a stuck bit": Kind(flip(effect=StuckAt(value=1)), NEURONS * 32, range(32)),
    "a named bit": Kind(flip(effect=Flip(bits=(30,))), VALUES, (30,)),
    "a named bit that is stuck": Kind(flip(effect=StuckAt(value=0, bits=(29,))), VALUES, (29,)),
    "two named bits": Kind(flip(effect=Flip(bits=(30, 23))), VALUES),
    "a burst of bits": Kind(flip(effect=Flip(count=3, adjacent=True)), NEURONS * 32),
    "a sign": Kind(flip(effect=Negate()), VALUES),
    "a zero": Kind(flip(effect=SetValue()), VALUES),
    "a NaN": Kind(flip(effect=SetValue(value=math.nan)), VALUES),
    "a random value": Kind(flip(effect=RandomValue(low=-5, high=5)), VALUES),
    "a random word": Kind(flip(effect=RandomWord()), VALUES),
    "the maximum": Kind(flip(effect=LayerMaximum()), VALUES),
    "three flips": Kind(flip(elements=RandomElements(count=3)), NEURONS * 32),
    "three neighbours": Kind(flip(elements=RandomElements(count=3, adjacent=True), effect=Negate()), VALUES),
    "the same flip always": Kind(flip(elements=RandomElements(fixed=True)), TENSOR),
    "a flip in all values": Kind(flip(elements=AllElements()), TENSOR),
    "all signs": Kind(flip(elements=AllElements(), effect=Negate()), TENSOR),
    "an error rate": Kind(flip(elements=ErrorRate(rate=2e-3)), TENSOR),
    "an error rate of 0": Kind(flip(elements=ErrorRate(rate=0)), TENSOR),
    "a flip in fixed point": Kind(flip(format=FixedPoint(integer_bits=4, fraction_bits=3)), NEURONS * 8, range(8)),
    "a flip in int8": Kind(flip(format=AffineInteger()), NEURONS * 8, range(8)),
    "a flip in fp8": Kind(flip(format=FloatingPoint(exponent_bits=4, mantissa_bits=3)), NEURONS * 8, range(8)),
    "a flip in a block's word": Kind(
        flip(format=BlockFloat(mantissa_bits=5, block_size=8), shared=True), np.array([6, 2, 1]) * 8, range(8)
    ),
    "a flip in a shared bias": Kind(
        flip(format=AdaptivFloat(exponent_bits=3, mantissa_bits=4), shared=True), TENSOR * 8, range(8)
    ),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
WITHOUT_VARIATION = ("a NaN", "an error rate of 0")


@cache
def model_and_data() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 5)
        model, images = nn.Sequential(*layers).eval(), torch.randn(20, 1, 6, 6)
    with torch.no_grad():
        return model, (images, model(images).argmax(dim=1))


def run(kind: str, **choices: Any) -> rh.CampaignResult:
    model, data = model_and_data()
    if "design" not in choices:
        choices = {"trials_per_site": 40, **choices}
    options = {"protocol": "raw", "fault": KINDS[kind].fault, "batch_size": 20, "progress": False}
    return rh.run_campaign(model, data, **options, **choices)


@cache
def campaign(kind: str) -> rh.CampaignResult:
    return run(kind)


def site_means(result: rh.CampaignResult, metric: str) -> np.ndarray:
    """Return the mean of a metric at each site, counted from the trials."""
    trials = result.trials
    values = trials.delta_loss if metric == "delta_loss" else trials.events(metric).astype(float)
    at_site = [values[trials.site == row] for row in range(len(result.sites))]
    return np.array([np.mean(each[~np.isnan(each)]) if (~np.isnan(each)).any() else np.nan for each in at_site])


@every_kind
def test_rates_and_losses_are_those_counted_from_the_trials(kind: str) -> None:
    result, places = campaign(kind), KINDS[kind].places
    network = result.summary().network
    for metric in (*RATES, "delta_loss"):
        means = site_means(result, metric)
        assert network.layer_averaged[metric].value == pytest.approx(means.mean(), rel=1e-9, nan_ok=True)
        assert network.bit_weighted[metric].value == pytest.approx((means * places).sum() / places.sum(), nan_ok=True)
        by_layer = [layer.figures[metric].value for layer in result.by_layer()]
        assert by_layer == pytest.approx(means.tolist(), nan_ok=True)
        for figure in (network.layer_averaged[metric], network.bit_weighted[metric]):
            assert "nan" not in str(figure)
            assert metric == "delta_loss" or figure.low <= figure.value <= figure.high
    assert sum(network.layer_averaged[rate].value for rate in ("masked", "tolerable", "sdc", "due")) == pytest.approx(1)


@every_kind
def test_harmful_bits_and_fit_exist_for_faults_of_one_bit(kind: str) -> None:
    scope = campaign(kind).summary().network
    if KINDS[kind].bits is None:
        assert scope.fault_bits is None
        for figure in (scope.harmful_bits, lambda: scope.fit(raw_fit_per_megabit=1000)):
            with pytest.raises(
                ArgumentError, match="Harmful bits and FIT count bits, and a trial of this campaign does"
            ):
                figure()
        return
    harmful = (site_means(campaign(kind), "sdc") * KINDS[kind].places).sum()
    assert scope.fault_bits == KINDS[kind].places.sum()
    assert scope.harmful_bits().value == pytest.approx(harmful)
    assert scope.fit(raw_fit_per_megabit=1000).value == pytest.approx(harmful / 2**20 * 1000)
    halved = scope.fit(raw_fit_per_megabit=1000, exposed_fraction=0.5)
    assert halved.high == pytest.approx(scope.harmful_bits().high / 2**20 * 500)
    with pytest.raises(TypeError, match="raw_fit_per_megabit"):
        scope.fit()  # type: ignore[call-arg]


@every_kind
def test_rates_of_bits_exist_for_faults_of_one_bit(kind: str) -> None:
    result = campaign(kind)
    if KINDS[kind].bits is None:
        with pytest.raises(ArgumentError, match=r"by_bit\(\) needs a fault of one bit of one value, .* FaultModel\("):
            result.by_bit()
        return
    found = result.by_bit(["0"])
    assert [one.bit for one in found] == list(KINDS[kind].bits)
    trials = result.trials.rows([0])
    for one in found:
        chosen = trials.bit == one.bit
        assert one.trials == chosen.sum()
        if one.trials:
            assert one.rates["sdc"].value == pytest.approx(np.mean(trials.outcome[chosen] == Outcome.SDC))
        else:
            assert str(one.rates["sdc"]) == "unknown (no trials)"
    assert all((one.role is None) == (KINDS[kind].fault.format is not None) for one in found)


@every_kind
def test_files_and_tables_keep_every_figure(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = campaign(kind)
    loaded = rh.CampaignResult.load(result.save(tmp_path / "run"))
    assert json.dumps(loaded.to_dict(), sort_keys=True) == json.dumps(result.to_dict(), sort_keys=True)
    assert repr(loaded.config.fault) == repr(KINDS[kind].fault)
    table = loaded.to_pandas()
    assert (table.outcome == "sdc").groupby(table.layer, observed=True).mean().tolist() == pytest.approx(
        site_means(result, "sdc").tolist()
    )
    assert cli.main(["report", str(tmp_path / "run")]) == 0
    for text in (capsys.readouterr().out, rh.report.layer_table(result), str(result), str(result.summary().network)):
        assert "nan%" not in text
        assert " nan" not in text.replace("value=nan", "")


@pytest.mark.parametrize(
    "kind", ["a sign", "a NaN", "three flips", "all signs", "an error rate", "a flip in a block's word"]
)
def test_shards_merge_to_the_whole(kind: str, tmp_path: Path) -> None:
    for rank in range(2):
        run(kind, output=tmp_path, shard=rh.Shard(rank=rank, world_size=2), chunk_size=20)
    merged = rh.merge_campaign(tmp_path)
    for name, column in campaign(kind).trials.columns.items():
        assert column.tobytes() == merged.trials.columns[name].tobytes(), name


@every_kind
def test_designs_and_stopping_rules(kind: str) -> None:
    stratified = run(kind, design=rh.StratifiedDesign(total_trials=90, by=()))
    assert stratified.summary().network.layer_averaged.sdc.value == pytest.approx(site_means(stratified, "sdc").mean())
    stopped = run(kind, trials_per_site=200, until=rh.StoppingRule(half_width=0.4, weighting="bit_weighted"))
    assert len(stopped.trials) < 600
    single = KINDS[kind].fault == rh.FaultModel()
    if kind in WITHOUT_VARIATION:
        with pytest.raises(ResultError, match="saw no variation of 'due'"):
            rh.neyman_design(campaign(kind), total_trials=120, metric="due")
        return
    design = rh.neyman_design(campaign(kind), total_trials=120, metric="delta_loss")
    assert single or design.by == ()
    result = run(kind, design=design, seed=1)
    if design.by == ():
        assert result.summary().network.layer_averaged.sdc.value == pytest.approx(site_means(result, "sdc").mean())
    if not single:
        with pytest.raises(ArgumentError, match=r"Strata by bit consist of single flips, .* FaultModel\("):
            rh.neyman_design(campaign(kind), total_trials=120, metric="delta_loss", by=("bit",))


@every_kind
def test_a_trial_is_replayed(kind: str) -> None:
    result, (model, data) = campaign(kind), model_and_data()
    row = 40 + 7
    again = rh.replay(result, model, data, site="3", trial=7)
    assert (again.outcome, again.neuron, again.bit) == tuple(
        result.trials.columns[name][row] for name in ("outcome", "neuron", "bit")
    )


@every_kind
def test_a_campaign_is_compared_with_one_of_the_same_fault_alone(kind: str) -> None:
    result = campaign(kind)
    comparison = rh.compare(result, result)
    same = comparison.improvement("network", "sdc", weighting="bit_weighted")
    assert same.ratio.value == 1 if same.baseline.value else math.isnan(same.ratio.value)
    kinds = {improvement.weighting for improvement in comparison.improvements}
    assert ("harmful_bits" in kinds) == (KINDS[kind].bits is not None)
    assert "nan" not in rh.report.comparison_table([comparison])
    if kind != "a flip":
        with pytest.raises(ResultError, match=r"inject different faults; .* FaultModel\("):
            rh.compare(campaign("a flip"), result)


@every_kind
def test_a_plot_shows_the_rates(kind: str) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    axes = pyplot.Figure().subplots()
    rh.report.plot_layers({kind: campaign(kind)}, ax=axes)
    assert list(axes.containers[0].lines[0].get_ydata()) == pytest.approx(site_means(campaign(kind), "sdc").tolist())


@pytest.mark.parametrize(
    "fault",
    [
        rh.WeightBitFlip(layer="5", index=(0, 0), bit=3),
        rh.BitFlip(layer="5", neuron=(0,), bit=3),
        rh.Fault(layer="5", tensor=rh.faults.Input(), effect=Negate()),
        rh.Fault(layer="5", tensor=rh.faults.StoredTensor(name="weight"), effect=Negate()),
        Negate(),
        "negate",
    ],
)
def test_faults_that_no_campaign_injects(fault: Any) -> None:
    with pytest.raises(ArgumentError, match=r"fault must be a FaultModel, such as FaultModel\(effect=Negate\(\)\)"):
        rh.CampaignConfig(fault=fault)


def test_sites_of_other_number_formats_weigh_by_their_places() -> None:
    """A fault that replaces values is equally likely in every value, however wide its word is."""
    narrow, wide = (
        rh.campaign.CampaignSite(site=site, range_limit=None, in_classifier=False)
        for site in (
            rh.find_sites(nn.Sequential(nn.Linear(4, 6)).to(dtype), torch.zeros(1, 4, dtype=dtype)).reached[0]
            for dtype in (torch.float16, torch.float64)
        )
    )
    from resilient_heads.campaign.design.allocation import layer_weights

    sites = (narrow, wide)
    assert layer_weights(sites, "bit_weighted", rh.FaultModel()).tolist() == [0.2, 0.8]
    assert layer_weights(sites, "bit_weighted", rh.FaultModel(effect=Negate())).tolist() == [0.5, 0.5]
    assert layer_weights(sites, "bit_weighted", KINDS["a flip in int8"].fault).tolist() == [0.5, 0.5]
