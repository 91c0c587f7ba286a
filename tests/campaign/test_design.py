"""Plans, allocation by a pilot, and estimates against the exhaustive truth."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import resilient_heads as rh
from helpers.injected import run_with_trials
from resilient_heads.campaign.analysis.stratum_needs import estimate_deviations
from resilient_heads.campaign.design.allocation import allocate
from resilient_heads.campaign.design.designs import design_from_dict
from resilient_heads.campaign.design.plan import InjectionPlan, plan_trials
from resilient_heads.campaign.design.strata import interleave, strata_of
from resilient_heads.campaign.trials.columns import CampaignSite
from resilient_heads.campaign.trials.outcomes import Outcome, judge
from resilient_heads.errors import ArgumentError, ResultError
from resilient_heads.injection.faults.draws import Draws
from resilient_heads.injection.random.elements import draw_single_flips
from resilient_heads.injection.sites.site import Site

Data = tuple[Tensor, Tensor]
CONV = Site(module="conv", kind="Conv2d", shape=(6, 2, 3), dtype=torch.float32, group=None, is_layer=True)
TOKENS = Site(module="fc", kind="Linear", shape=(5, 7), dtype=torch.float16, group=None, is_layer=True)
SITES = (CampaignSite(CONV, None, False), CampaignSite(TOKENS, None, True))
BYS = [(), ("bit",), ("magnitude",), ("role",), ("channel",), ("channel", "bit"), ("role", "channel")]


def stratum_weights(design: rh.StratifiedDesign, sites: tuple[CampaignSite, ...]) -> NDArray[np.float64]:
    """Return the fraction of each stratum in the mean over all sites."""
    return np.concatenate([design.strata(site).fractions / len(sites) for site in sites])


def test_uniform_draws_what_it_always_drew() -> None:
    plan, numbers = plan_trials(rh.UniformDesign(trials_per_site=50), SITES, seed=9), np.arange(50)
    assert plan.counts == (50, 50)
    for row, struck in enumerate(SITES):
        site = struck.site
        expected = draw_single_flips(9, site.name, numbers, neurons=site.neurons, word_bits=site.word_bits)
        drawn = plan.draw(row, numbers)
        np.testing.assert_array_equal(drawn.neurons[:, 0], expected.neurons)
        np.testing.assert_array_equal(drawn.bits[:, 0], expected.bits)


@pytest.mark.parametrize("by", BYS)
@pytest.mark.parametrize("site", [CONV, TOKENS], ids=["conv", "tokens"])
def test_strata_part_the_faults(site: Site, by: tuple[str, ...]) -> None:
    strata = strata_of(site, by, channel_groups=3)
    neuron, bit = (
        part.ravel() for part in np.meshgrid(np.arange(site.neurons), np.arange(site.word_bits), indexing="ij")
    )
    code = strata.of(neuron, bit)
    np.testing.assert_allclose(np.bincount(code, minlength=len(strata)) / len(code), strata.fractions)
    placed = set()
    for stratum in range(len(strata)):
        size, width = strata.size(stratum)
        own, wide = (part.ravel() for part in np.meshgrid(np.arange(size), np.arange(width), indexing="ij"))
        neurons, bits = strata.locate(stratum, own, wide)
        assert (strata.of(neurons, bits) == stratum).all()
        placed |= set(zip(neurons.tolist(), bits.tolist(), strict=True))
    assert len(placed) == site.neurons * site.word_bits


def test_channels_by_hand() -> None:
    assert strata_of(CONV, ("channel",), channel_groups=3).of(np.array([0, 11, 12, 35]), np.zeros(4, int)).tolist() == [
        0,
        0,
        1,
        2,
    ]
    assert strata_of(TOKENS, ("channel",), channel_groups=7).of(np.array([0, 6, 7, 34]), np.zeros(4, int)).tolist() == [
        0,
        6,
        0,
        6,
    ]


def test_magnitudes_by_hand() -> None:
    edges = {
        torch.float32: [0, 23, 26, 30, 31, 32],
        torch.bfloat16: [0, 7, 10, 14, 15, 16],
        torch.float16: [0, 10, 13, 14, 15, 16],
        torch.float8_e4m3fn: [0, 3, 6, 7, 8],
    }
    for dtype, expected in edges.items():
        strata = strata_of(replace(CONV, dtype=dtype), ("magnitude",), channel_groups=1)
        assert strata.bit_edges.tolist() == expected


def test_neyman_by_hand() -> None:
    # Shares 0.9 and 0.1 with deviations 0.1 and 0.9: 0.09 each, so half of the trials each.
    weights, deviation = np.array([0.9, 0.1]), np.array([0.1, 0.9])
    assert allocate(100, [weights * deviation], ["fc"]) == {"fc": (50, 50)}
    assert allocate(100, [np.array([0.99, 0.005, 0.005])], ["fc"], least=8) == {"fc": (84, 8, 8)}


def test_deviations_are_drawn_towards_what_other_layers_show() -> None:
    counts = np.full((2, 2), 10.0)
    sums = np.array([[8.0, 0.0], [0.0, 0.0]])
    found = estimate_deviations(counts, sums, sums, 1.0)
    # By hand: strata 8.5/21 and 0.5/21, so 90/21 events expected a layer; layers 9 and 1 of one more; four trials each.
    first, second, fragile, sturdy = 8.5 / 21, 0.5 / 21, 9 / (1 + 90 / 21), 1 / (1 + 90 / 21)
    assert first * fragile > 0.5  # so a half stands for it
    rates = np.array(
        [
            [(8 + 4 * 0.5) / 14, 4 * second * fragile / 14],
            [4 * first * sturdy / 14, 4 * second * sturdy / 14],
        ]
    )
    np.testing.assert_allclose(found, np.sqrt(rates * (1 - rates)))
    assert (estimate_deviations(counts, np.zeros((2, 2)), np.zeros((2, 2)), 1.0) > 0).all()


@pytest.mark.parametrize("by", BYS)
def test_a_stratified_plan_is_a_pure_function_of_numbers(by: tuple[str, ...]) -> None:
    design = rh.StratifiedDesign(total_trials=900, by=by)
    plan = plan_trials(design, SITES, seed=4)
    assert plan.total == 900
    for row, count in enumerate(plan.counts):
        whole = plan.draw(row, np.arange(count))
        picked = np.random.default_rng(1).permutation(count)[:17]
        some = plan.draw(row, picked)
        np.testing.assert_array_equal(some.neurons, whole.neurons[picked])
        np.testing.assert_array_equal(some.bits, whole.bits[picked])
        strata = plan.design.strata(SITES[row])
        counts = plan.design.counts[SITES[row].site.name]
        np.testing.assert_array_equal(np.bincount(strata.of(whole.neurons[:, 0], whole.bits[:, 0])), counts)
    again = design_from_dict(json.loads(json.dumps(plan.design.as_dict())))
    assert again == plan.design
    assert (
        InjectionPlan(SITES, plan.counts, 4, again).draw(0, np.arange(5)).bits.tolist()
        == plan.draw(0, np.arange(5)).bits.tolist()
    )


def test_draws_are_uniform_within_a_stratum() -> None:
    counts = {"conv": (24_000, 24_000, 24_000), "fc": (2, 2, 2)}
    plan = plan_trials(rh.StratifiedDesign(total_trials=72_006, by=("role",), counts=counts), SITES, seed=4)
    drawn = plan.draw(0, np.arange(72_000))
    for bits in (range(23), range(23, 31)):
        own = np.isin(drawn.bits, bits)
        table = np.histogram2d(drawn.neurons[own], drawn.bits[own], bins=[36, len(bits)])[0]
        expected = 24_000 / table.size
        assert (np.square(table - expected) / expected).sum() < table.size + 5 * math.sqrt(2 * table.size)


@pytest.mark.parametrize("counts", [(5, 200, 17, 2), (40, 40, 40), (1000, 2, 2, 2, 2)])
def test_every_prefix_is_near_the_shares(counts: tuple[int, ...]) -> None:
    order = interleave(counts, offset=0.3)
    np.testing.assert_array_equal(np.bincount(order), counts)
    assert sorted(order[: len(counts)].tolist()) == list(range(len(counts)))
    for length in range(len(counts), len(order) + 1):
        found = np.bincount(order[:length], minlength=len(counts))
        assert (np.abs(found - length * np.array(counts) / sum(counts)) <= len(counts) + 1).all()


@pytest.mark.parametrize(
    ("choices", "match"),
    [
        ({"total_trials": 0}, "trials must be"),
        ({"total_trials": 9, "by": "bit"}, "by must be"),
        ({"total_trials": 9, "by": ("bit", "role")}, "by must be"),
        ({"total_trials": 9, "weighting": "bits"}, "weighting"),
        ({"total_trials": 9, "counts": {"fc": (0, 3)}}, "counts of .fc. must be a whole number of at least 1, found 0"),
        ({"total_trials": 9, "counts": {"fc": 3}}, "counts of .fc. must be a tuple, such as .8, 2.; found 3"),
        ({"total_trials": 9, "by": ("bit", 3)}, "by must be"),
        ({"total_trials": 9, "by": 3}, "by must be"),
        ({"total_trials": 9, "by": ("bit", "bit")}, "by must be"),
    ],
)
def test_designs_that_mean_nothing(choices: dict[str, object], match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        rh.StratifiedDesign(**choices)


def test_plans_that_do_not_fit() -> None:
    with pytest.raises(ArgumentError, match="too few for 48 strata"):
        plan_trials(rh.StratifiedDesign(total_trials=95), SITES, seed=0)
    with pytest.raises(ArgumentError, match="has 32"):
        plan_trials(rh.StratifiedDesign(total_trials=95, counts={"conv": (3, 3), "fc": (1,)}), SITES, seed=0)
    with pytest.raises(ArgumentError, match="pass another seed"):
        plan_trials(rh.StratifiedDesign(total_trials=950, pilot_seed=7), SITES, seed=7)


@pytest.fixture
def tiny() -> tuple[nn.Module, Data]:
    """A trained network small enough to strike every bit of every neuron."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)
    )
    images, labels = torch.randn(60, 1, 5, 5), torch.arange(60) % 3
    images += 1.5 * labels[:, None, None, None] - 1.5
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), (images[:12], labels[:12])


def run_exhaustive(model: nn.Module, data: Data, sites: tuple[CampaignSite, ...]) -> dict[str, np.ndarray]:
    """Strike every bit of every neuron of every site on every correctly classified image."""
    images, labels = data
    with torch.inference_mode():
        golden = model(images)
        good = golden.argmax(dim=1) == labels
        images, labels, golden = images[good], labels[good], golden[good]
        sdc, loss = [], []
        for struck in sites:
            site = struck.site
            count = site.neurons * site.word_bits
            neurons, bits = np.arange(count) // site.word_bits, np.arange(count) % site.word_bits
            sdcs, lost = np.zeros(count), np.zeros(count)
            for image, label, clean in zip(images, labels, golden, strict=True):
                batch = image[None].repeat(count, 1, 1, 1)
                _, faulty = run_with_trials(
                    model, batch, site.name, Draws.single_flips(neurons, bits), range_limit=struck.range_limit
                )
                judged = judge(clean.repeat(count, 1), faulty, label.repeat(count))
                sdcs += judged.outcome.numpy() == Outcome.SDC
                lost += judged.delta_loss.numpy()
            sdc.append((sdcs / len(images)).reshape(-1, site.word_bits))
            loss.append((lost / len(images)).reshape(-1, site.word_bits))
    return {
        "layer": np.array([own.mean() for own in sdc]),
        "bit": np.mean([own.mean(axis=0) for own in sdc], axis=0),
        "loss": np.array([own.mean() for own in loss]),
        "sizes": np.array([own.size for own in sdc]),
    }


@pytest.mark.slow
@pytest.mark.parametrize("by", [("magnitude",), ("perturbation",)])
def test_estimates_are_unbiased_against_the_exhaustive_truth(tiny: tuple[nn.Module, Data], by: tuple[str, ...]) -> None:
    model, data = tiny

    def run(seed: int, design: rh.UniformDesign | rh.StratifiedDesign) -> rh.CampaignResult:
        return rh.run_campaign(model, data, calibration=data, design=design, seed=seed, batch_size=512, progress=False)

    first = run(1000, rh.UniformDesign(trials_per_site=150))
    truth = run_exhaustive(model, data, first.sites)
    share = truth["sizes"] / truth["sizes"].sum()
    expected = {
        "per layer": truth["layer"].mean(),
        "bit_weighted": share @ truth["layer"],
        "first layer": truth["layer"][0],
        "loss": truth["loss"].mean(),
        "bit 30": truth["bit"][30],
    }
    found: dict[str, list[float]] = {name: [] for name in expected}
    for seed in range(24):
        pilot = run(2000 + seed, rh.UniformDesign(trials_per_site=60))
        design = rh.neyman_design(pilot, total_trials=400, metric="sdc", weighting="bit_weighted", by=by)
        assert design.fragile_images is (by == ("perturbation",))  # there is a range detector
        result = run(seed, design)
        network = result.scope("network")
        found["per layer"].append(network.layer_averaged.sdc.value)
        found["bit_weighted"].append(network.bit_weighted.sdc.value)
        found["first layer"].append(result.by_layer()[0].figures.sdc.value)
        found["loss"].append(network.layer_averaged.delta_loss.value)
        found["bit 30"].append(result.by_bit()[30].rates["sdc"].value)
    for name, values in found.items():
        error = np.std(values, ddof=1) / math.sqrt(len(values))
        assert abs(np.mean(values) - expected[name]) < 3.7 * error, name  # five tests: one in a thousand by chance
        assert error < 0.2 * expected[name], name
    # What unweighted shares of the trials say is far off: the test would see a forgotten weight.
    naive = float(result.trials.events("sdc").mean())
    assert naive > 1.5 * expected["bit_weighted"]


def test_neyman_leaves_no_stratum_out_and_goes_where_harm_is(tiny: tuple[nn.Module, Data]) -> None:
    model, data = tiny
    pilot = rh.run_campaign(model, data, calibration=data, trials_per_site=300, seed=5, progress=False)
    design = rh.neyman_design(pilot, total_trials=3000, by=("bit",), floor=0.5)
    assert sum(sum(own) for own in design.counts.values()) == 3000
    weights = stratum_weights(design, pilot.sites)
    counts = np.concatenate(list(design.counts.values()))
    assert (counts >= np.maximum(2, np.floor(0.5 * weights * 3000) - 1)).all()
    last = np.array(design.counts[pilot.sites[-1].site.name])
    assert last[24:].mean() > 3 * last[:20].mean()
    own = rh.neyman_design(pilot, total_trials=3000)  # the floor for which the interval is expected to be narrowest
    assert sum(sum(one) for one in own.counts.values()) == 3000
    assert min(min(one) for one in own.counts.values()) >= 8
    assert all(len(one) == 5 for one in own.counts.values())
    even = stratum_weights(own, pilot.sites) * 3000
    shares = np.concatenate(list(own.counts.values())) / even
    assert shares.max() > 3 * shares.min()
    assert rh.neyman_design(pilot, total_trials=3000, metric="delta_loss").counts != own.counts
    with pytest.raises(ArgumentError, match="floor must be a number above 0"):
        rh.neyman_design(pilot, total_trials=3000, floor=0.0)
    with pytest.raises(ArgumentError, match='found "harm"'):
        rh.neyman_design(pilot, total_trials=3000, metric="harm")
    with pytest.raises(ResultError, match="no variation"):
        rh.neyman_design(pilot, total_trials=3000, metric="due")
    with pytest.raises(ArgumentError, match="pass another seed"):
        rh.run_campaign(model, data, calibration=data, design=design, seed=5, progress=False)


def test_until_stops_at_a_prefix_of_the_whole(tiny: tuple[nn.Module, Data]) -> None:
    model, data = tiny
    design = rh.StratifiedDesign(total_trials=6000, image_groups=3)
    until = rh.StoppingRule(half_width=0.04)

    def run(until: rh.StoppingRule | None) -> rh.CampaignResult:
        return rh.run_campaign(model, data, calibration=data, design=design, until=until, progress=False)

    whole, early = run(None), run(until)
    estimate = early.scope("network").layer_averaged.sdc
    assert estimate.high - estimate.low <= 0.08
    assert len(early.trials) < len(whole.trials)
    prefix = whole.trials.where(whole.trials.trial <= early.trials.trial.max())
    for name, column in prefix.columns.items():
        np.testing.assert_array_equal(column, early.trials.columns[name])
    assert len(run(rh.StoppingRule(half_width=1e-9, max_trials=400)).trials) in range(400, 400 + 3 * 256)
    with pytest.raises(ArgumentError, match="half_width"):
        rh.StoppingRule(half_width=0)


def test_intervals_of_all_layers_together_are_wider(tiny: tuple[nn.Module, Data]) -> None:
    model, data = tiny
    result = rh.run_campaign(model, data, calibration=data, trials_per_site=300, progress=False)
    for alone, together in zip(result.by_layer(), result.by_layer(simultaneous=True), strict=True):
        assert together.figures.sdc.level == pytest.approx(1 - 0.01 / 3)
        assert together.figures.sdc.high > alone.figures.sdc.high


def test_choices_that_are_lists_become_tuples() -> None:
    design = rh.StratifiedDesign(total_trials=9, by=["magnitude", "channel"], counts={"fc": [2, 3]})  # type: ignore[arg-type]
    assert (design.by, design.counts) == (("magnitude", "channel"), {"fc": (2, 3)})
