"""Strata of what flips do to values: classes by hand, choices against enumeration, campaigns that repeat themselves."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import resilient_heads as rh
from resilient_heads.campaign.analysis.stratum_needs import smooth_fractions
from resilient_heads.campaign.design.perturbation_strata import CLASSES, EDGES, PerturbationStrata, change_classes
from resilient_heads.campaign.design.plan import plan_trials
from resilient_heads.campaign.trials.columns import CampaignSite
from resilient_heads.errors import ArgumentError
from resilient_heads.injection.faults.ranges import apply_range
from resilient_heads.injection.formats.bits import flip_bits
from resilient_heads.injection.sites.site import Site

SMALL = Site(module="conv", kind="Conv2d", shape=(4, 3, 3), dtype=torch.float32, group=None, is_layer=True)
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]


def site(dtype: torch.dtype, channels: int = 4) -> Site:
    return Site(module="conv", kind="Conv2d", shape=(channels, 3, 3), dtype=dtype, group=None, is_layer=True)


def test_classes_by_hand() -> None:
    after = np.array([1.49, 1.5, 3.0, 5.0, 9.0, 17.0, 257.0, 0.51, 0.5, -1.0, -3.0, -7.0, -15.0, -255.0])
    expected = [0, 1, 2, 3, 4, 5, 6, 0, 7, 8, 9, 10, 11, 12]
    assert change_classes(np.float64(1.0), after, 2.0).tolist() == expected
    assert EDGES == (0.25, 1.0, 2.0, 4.0, 8.0, 128.0)
    odd = np.array([math.inf, -math.inf, math.nan])
    assert change_classes(np.float64(1.0), odd, 2.0).tolist() == [CLASSES - 1] * 3
    assert change_classes(odd, np.zeros(3), 2.0).tolist() == [CLASSES - 1] * 3


def classes_one_by_one(changes: PerturbationStrata, value: Tensor) -> list[int]:
    """Flip each bit of one value by itself."""
    found = []
    for bit in range(changes.site.site.word_bits):
        after = apply_range(flip_bits(value, bit), changes.site.range_limit, changes.detector)
        own = change_classes(value.double().numpy(), after.double().numpy().reshape(1), changes.scale)
        found.append(0 if bit < changes.low_bits else int(own[0]))
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("limit", [None, 3.0])
def test_choices_are_each_fault_of_the_class_alike(dtype: torch.dtype, limit: float | None) -> None:
    changes = PerturbationStrata(CampaignSite(site(dtype), limit, False), "clamp", 0.8)
    torch.manual_seed(2)
    tensor = torch.randn(1, 4, 3, 3).to(dtype)
    truth = np.array([classes_one_by_one(changes, value) for value in tensor.flatten().unsqueeze(1)])
    shares = changes.fractions(tensor.flatten())
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    np.testing.assert_allclose(shares.mean(axis=0), np.bincount(truth.ravel(), minlength=CLASSES) / truth.size)
    for wanted in range(CLASSES):
        members = {(int(n), int(b)) for n, b in zip(*np.nonzero(truth == wanted), strict=True)}
        draws = max(len(members), 1)  # every rank once, from another start each time
        found = changes.choose(
            tensor.expand(draws, -1, -1, -1),
            np.full(draws, wanted),
            np.zeros(draws, dtype=np.int64),
            (np.arange(draws) + 0.5) / draws,
        )
        np.testing.assert_allclose(found.fraction, len(members) / truth.size)
        struck = set(zip(found.neurons.tolist(), found.bits.tolist(), strict=True))
        assert struck == members or not members


@pytest.mark.slow
def test_a_sample_of_candidates_is_unbiased() -> None:
    """Over all starts, share times outcome of the chosen one gives what enumeration gives."""
    changes = PerturbationStrata(CampaignSite(site(torch.float32, channels=111), None, False), "clamp", 1.0)
    torch.manual_seed(4)
    tensor = torch.randn(1, 111, 3, 3)
    count = changes.site.site.neurons
    truth = np.array([classes_one_by_one(changes, value) for value in tensor.flatten().unsqueeze(1)])
    harm = np.random.default_rng(1).random(truth.shape)
    starts = np.tile(np.arange(count), 2)
    picks = np.random.default_rng(2).random(len(starts))
    for wanted in (0, 6, 12):
        found = changes.choose(tensor.expand(len(starts), -1, -1, -1), np.full(len(starts), wanted), starts, picks)
        assert len(np.unique(found.fraction)) > 3  # 256 of 999 neurons are looked at
        own = truth == wanted
        np.testing.assert_allclose(found.fraction.mean(), own.mean(), rtol=1e-9)
        values = found.fraction * harm[found.neurons, found.bits]
        error = values.std() / math.sqrt(len(values))
        assert abs(values.mean() - (harm * own).mean()) < 4 * error
        assert (truth[found.neurons, found.bits][found.fraction > 0] == wanted).all()


def test_a_class_that_an_image_lacks_counts_nothing() -> None:
    changes = PerturbationStrata(CampaignSite(SMALL, 1.0, False), "clamp", 1.0)
    found = changes.choose(torch.zeros(2, 4, 3, 3), np.array([6, 13]), np.array([3, 35]), np.array([0.1, 0.9]))
    assert found.fraction.tolist() == [0.0, 0.0]
    assert found.neurons.tolist() == [3, 35]


def test_choices_do_not_depend_on_the_rest_of_the_batch() -> None:
    changes = PerturbationStrata(CampaignSite(SMALL, None, False), "clamp", 1.0)
    rng = np.random.default_rng(0)
    tensor = torch.from_numpy(rng.normal(size=(50, 4, 3, 3))).float()
    classes, starts, picks = rng.integers(0, CLASSES, 50), rng.integers(0, 36, 50), rng.random(50)
    whole = changes.choose(tensor, classes, starts, picks)
    order = rng.permutation(50)[:20]
    some = changes.choose(
        tensor[order].to(memory_format=torch.channels_last), classes[order], starts[order], picks[order]
    )
    np.testing.assert_array_equal(some.neurons, whole.neurons[order])
    np.testing.assert_array_equal(some.bits, whole.bits[order])
    np.testing.assert_array_equal(some.fraction, whole.fraction[order])


def test_images_near_a_decision_are_drawn_more_often(
    trained: tuple[nn.Module, tuple[Tensor, Tensor], rh.CampaignResult],
) -> None:
    _, _, pilot = trained
    golden = replace(
        pilot.golden,
        top2diff=np.array([0.9, 0.5, 0.3, 0.1, 0.01, 0.01] + [0.9] * 34),
        eligible=np.array([True] * 5 + [False] + [True] * 34),
    )
    even = plan_trials(rh.UniformDesign(trials_per_site=5), pilot.sites, seed=1)
    assert even.image_weights(golden).tolist() == [1] * 5 + [0] + [1] * 34
    design = rh.neyman_design(pilot, total_trials=1500, by=("perturbation",))
    assert not design.fragile_images  # no range detector
    assert plan_trials(design, pilot.sites, seed=3).image_weights(golden).tolist() == [1] * 5 + [0] + [1] * 34
    plan = plan_trials(replace(design, fragile_images=True), pilot.sites, seed=2)
    image_weights = plan.image_weights(golden)
    assert image_weights.tolist() == [1, 1, 2, 4, 8, 0] + [1] * 34
    numbers = np.arange(48_000)
    drawn = plan.images(0, numbers, image_weights)
    np.testing.assert_array_equal(drawn, plan.images(2, numbers, image_weights))  # one golden run for all layers
    np.testing.assert_array_equal(drawn[77:99], plan.images(0, numbers[77:99], image_weights))
    found = np.bincount(drawn, minlength=40)
    assert (np.abs(found - 48_000 * image_weights / 50) < 5 * np.sqrt(found + 1)).all()
    np.testing.assert_allclose(plan.sampling_weights(drawn, image_weights)[drawn == 4][0], 50 / 39 / 8)
    assert plan.sampling_weights(drawn, image_weights).mean() == pytest.approx(1, abs=0.02)
    assert (even.sampling_weights(drawn, image_weights) == 1).all()


def test_fractions_are_shrunk_towards_those_of_all_layers() -> None:
    first, second = np.zeros(CLASSES), np.zeros(CLASSES)
    first[0], second[:2] = 1.0, (0.5, 0.5)
    found = smooth_fractions([first, second], [30, 60])
    np.testing.assert_allclose(found[0, :3], np.array([30 + 1.5 + 0.5 / 14, 0.5 + 0.5 / 14, 0.5 / 14]) / 32.5)
    np.testing.assert_allclose(found.sum(axis=1), 1)


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, tuple[Tensor, Tensor], rh.CampaignResult]:
    """A trained network, its images and a pilot."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4))
    labels = torch.arange(80) % 4
    images = torch.randn(80, 1, 8, 8) + labels[:, None, None, None] - 1.5
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():  # less sure of itself, so that some images lie near a decision
        model[-1].weight *= 0.2
        model[-1].bias *= 0.2
    data = (images[:40], labels[:40])
    pilot = rh.run_campaign(model.eval(), data, protocol="raw", trials_per_site=200, seed=1, progress=False)
    return model, data, pilot


def same(first: rh.CampaignResult, second: rh.CampaignResult) -> None:
    for name, column in first.trials.columns.items():
        np.testing.assert_array_equal(column, second.trials.columns[name])


def test_campaigns_by_change_repeat_themselves(
    trained: tuple[nn.Module, tuple[Tensor, Tensor], rh.CampaignResult], tmp_path: Path
) -> None:
    model, data, pilot = trained
    design = replace(rh.neyman_design(pilot, total_trials=1500, by=("perturbation",)), fragile_images=True)

    def run(**options: object) -> rh.CampaignResult:
        settings: dict = {"batch_size": 16, "chunk_size": 64, **options}
        return rh.run_campaign(model, data, protocol="raw", design=design, seed=2, progress=False, **settings)

    whole = run()
    plan = whole.record.plan
    image_weights = plan.image_weights(whole.golden)
    assert image_weights[whole.golden.eligible].min() < image_weights.max()
    for row, struck in enumerate(whole.sites):  # of each image's share of faults, which is a count
        own = whole.trials.where(whole.trials.site == row)
        found = own.weight / plan.sampling_weights(own.image, image_weights) * min(256, struck.site.neurons) * 32
        np.testing.assert_allclose(found, np.round(found), atol=1e-6)
        assert 0 < found.max() < min(256, struck.site.neurons) * 32
    same(whole, run(engine="full"))
    same(whole, run(output=tmp_path / "one"))
    for rank in range(2):
        run(output=tmp_path / "two", shard=rh.Shard(rank=rank, world_size=2))
    same(whole, rh.merge_campaign(tmp_path / "two"))
    assert (tmp_path / "one/result.parquet").read_bytes() == (tmp_path / "two/result.parquet").read_bytes()
    (tmp_path / "one/result.parquet").unlink()
    (tmp_path / "one/trials/chunk-000001.parquet").unlink()
    same(whole, run(output=tmp_path / "one"))
    loaded = rh.CampaignResult.load(tmp_path / "one")
    assert loaded.config.design == whole.config.design
    assert loaded.scope("network").layer_averaged == whole.scope("network").layer_averaged
    rows = np.random.default_rng(0).choice(len(whole.trials), 12, replace=False)
    for row in rows:
        site, trial = int(whole.trials.site[row]), int(whole.trials.trial[row])
        again = rh.replay(tmp_path / "one", model, data, site=site, trial=trial)
        assert (again.neuron, again.bit) == (whole.trials.neuron[row], whole.trials.bit[row])


def test_the_four_outcomes_add_up(trained: tuple[nn.Module, tuple[Tensor, Tensor], rh.CampaignResult]) -> None:
    model, data, pilot = trained
    design = rh.neyman_design(pilot, total_trials=1500, by=("perturbation",))
    result = rh.run_campaign(model, data, protocol="raw", design=design, seed=3, progress=False)
    for figures in (result.scope("network").bit_weighted, result.by_layer()[0].figures):
        assert figures.masked.value + figures.tolerable.value + figures.sdc.value + figures.due.value == pytest.approx(
            1
        )
    # A uniform campaign flips a bit of the lower half of the word in half of its trials; the weights must say so.
    bits = result.by_bit()
    assert sum(bit.trials for bit in bits) == 1500
    assert bits[30].rates["sdc"].value > bits[10].rates["sdc"].value


def test_neyman_takes_changes_where_they_pay(
    trained: tuple[nn.Module, tuple[Tensor, Tensor], rh.CampaignResult],
) -> None:
    _, _, pilot = trained
    assert rh.neyman_design(pilot, total_trials=4000).by == ("perturbation",)
    assert rh.neyman_design(pilot, total_trials=70).by == ("magnitude",)  # too few for two in each class of each layer
    assert rh.neyman_design(pilot, total_trials=4000, by=("role",)).by == ("role",)
    with pytest.raises(ArgumentError, match="too few for 42 strata"):
        rh.neyman_design(pilot, total_trials=70, by=("perturbation",))


def test_designs_by_change_that_mean_nothing(
    trained: tuple[nn.Module, tuple[Tensor, Tensor], rh.CampaignResult],
) -> None:
    model, data, pilot = trained
    with pytest.raises(ArgumentError, match="take their counts and scales from a pilot"):
        rh.StratifiedDesign(total_trials=100, by=("perturbation",))
    with pytest.raises(ArgumentError, match="by must be"):
        rh.StratifiedDesign(total_trials=100, by=("perturbation", "bit"))
    design = rh.neyman_design(pilot, total_trials=1500, by=("perturbation",))
    with pytest.raises(ArgumentError, match="fragile_images=True needs"):
        rh.StratifiedDesign(total_trials=100, fragile_images=True)
    with pytest.raises(ArgumentError, match="scale of '0' must be a number above 0"):
        rh.StratifiedDesign(total_trials=100, by=("perturbation",), counts=design.counts, scales={"0": 0.0})
    with pytest.raises(ArgumentError, match="same layers of the same model"):
        rh.run_campaign(
            nn.Sequential(model, nn.Identity()).eval(), data, protocol="raw", design=design, seed=2, progress=False
        )
    with pytest.raises(ArgumentError, match="consist of single flips"):
        rh.run_campaign(
            model,
            data,
            protocol="raw",
            design=design,
            seed=2,
            fault=rh.FaultModel(effect=rh.faults.Flip(count=2)),
            progress=False,
        )
    with pytest.raises(ArgumentError, match="call draw_with_weights"):
        plan_trials(design, pilot.sites, seed=2).draw(0, np.arange(3))
