import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import resilient_heads as rh
from helpers.grid import grid
from resilient_heads.campaign.golden.digests import fingerprint
from resilient_heads.campaign.golden.golden_run import profile_ranges
from resilient_heads.campaign.trials.outcomes import Outcome
from resilient_heads.errors import ArgumentError, DataError, FaultError, ForwardError, InjectionError, ModelError
from resilient_heads.injection.faults import fault_model as models
from resilient_heads.injection.sites.find import find_sites

Data = tuple[Tensor, Tensor]


def campaign(model: nn.Module, data: object, **options: object) -> rh.CampaignResult:
    settings: dict = {"protocol": "raw", "trials_per_site": 60, "progress": False, **options}
    return rh.run_campaign(model, data, **settings)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_leaves_the_model_as_it_was(small_net: nn.Module, labelled: Data) -> None:
    small_net.bn.eval()
    before = fingerprint(small_net)
    modes = [module.training for module in small_net.modules()]
    golden = small_net.eval()(labelled[0])
    small_net.train()
    small_net.bn.eval()
    campaign(small_net, labelled)
    assert fingerprint(small_net) == before
    assert [module.training for module in small_net.modules()] == modes
    assert hooks(small_net) == 0
    assert torch.equal(small_net.eval()(labelled[0]), golden)


def test_leaves_the_model_as_it_was_when_the_loader_raises(small_net: nn.Module, labelled: Data) -> None:
    def loader() -> Iterator[Data]:
        yield labelled
        raise OSError("disk")

    before = fingerprint(small_net)
    with pytest.raises(DataError, match=r"calibration raised an error while it was read. OSError: disk"):
        campaign(small_net, labelled, protocol="goldeneye", calibration=loader())
    assert fingerprint(small_net) == before
    assert small_net.training
    assert small_net.dropout.training
    assert hooks(small_net) == 0


def test_a_model_that_changes_on_the_way_is_noticed(small_net: nn.Module, labelled: Data) -> None:
    def change(done: int, total: int) -> None:
        if done == total:
            small_net.fc.bias.data[0] += 1

    with pytest.raises(InjectionError, match="changed the model's golden logits"):
        campaign(small_net, labelled, progress=change)


def test_progress_is_told_to_a_function(small_net: nn.Module, labelled: Data) -> None:
    reported: list[tuple[int, int]] = []
    result = campaign(small_net, labelled, progress=lambda done, total: reported.append((done, total)), batch_size=30)
    total = len(result.trials)
    assert reported == [(done, total) for done in range(30, total + 1, 30)]


def test_the_golden_run_is_shown_before_the_first_trial(small_net: nn.Module, labelled: Data) -> None:
    seen: list[object] = []
    result = campaign(small_net, labelled, on_golden=seen.append, progress=lambda done, _: seen.append(done))
    assert seen[0] is result.golden
    assert len(seen) > 1


def test_every_site_in_order_with_every_trial_decided(small_net: nn.Module, labelled: Data) -> None:
    result = campaign(small_net, labelled)
    assert [struck.site.name for struck in result.sites] == ["conv1", "conv2", "fc"]
    assert [struck.in_classifier for struck in result.sites] == [False, False, True]
    assert len(result.trials) == 180
    assert set(np.unique(result.trials.outcome)) <= set(Outcome)
    assert result.uninjectable == {}


def test_a_trial_depends_on_seed_layer_and_number_alone(small_net: nn.Module, labelled: Data) -> None:
    whole = campaign(small_net, labelled)
    other_batches = campaign(small_net, labelled, batch_size=7)
    fewer_layers = campaign(small_net, labelled, layers=["fc"])
    fewer_trials = campaign(small_net, labelled, trials_per_site=25)
    other_seed = campaign(small_net, labelled, seed=1)
    for name in ("image", "neuron", "bit"):
        column = grid(whole)[name]
        np.testing.assert_array_equal(grid(other_batches)[name], column)
        np.testing.assert_array_equal(grid(fewer_trials)[name], column[:, :25])
        np.testing.assert_array_equal(grid(fewer_layers)[name], column[2:])
        assert (grid(other_seed)[name] != column).mean() > 0.5
    sdc = whole.trials.outcome == Outcome.SDC
    np.testing.assert_array_equal(other_batches.trials.outcome == Outcome.SDC, sdc)
    assert sdc.any()


def test_equal_runs_are_equal_to_the_last_bit(small_net: nn.Module, labelled: Data) -> None:
    first, second = campaign(small_net, labelled), campaign(small_net, labelled)
    for name, column in first.trials.columns.items():
        assert column.tobytes() == second.trials.columns[name].tobytes(), name
    assert first.config == second.config


def test_loader_batches_and_tensors_are_the_same_data(small_net: nn.Module, labelled: Data) -> None:
    loader = DataLoader(TensorDataset(*labelled), batch_size=5)
    assert campaign(small_net, loader).record.data_sha256 == campaign(small_net, labelled).record.data_sha256


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_formats(small_net: nn.Module, labelled: Data, dtype: torch.dtype) -> None:
    small_net.to(dtype)
    images = labelled[0].to(dtype)
    labels = small_net.eval()(images).argmax(dim=1)
    result = campaign(small_net, (images, labels))
    width = torch.finfo(dtype).bits
    assert {struck.site.word_bits for struck in result.sites} == {width}
    assert int(result.trials.bit.max()) == width - 1


def test_channels_last_masks_as_much(small_net: nn.Module, labelled: Data) -> None:
    plain = campaign(small_net, labelled, trials_per_site=300)
    formatted = campaign(
        small_net.to(memory_format=torch.channels_last),
        (labelled[0].to(memory_format=torch.channels_last), labelled[1]),
        trials_per_site=300,
    )
    masked = [(r.trials.outcome == Outcome.MASKED).mean() for r in (plain, formatted)]
    assert masked[0] > 0.05
    assert masked[1] == pytest.approx(masked[0], abs=0.03)


def test_non_finite_trials_are_counted_not_dropped(small_net: nn.Module, labelled: Data) -> None:
    result = campaign(small_net, labelled, trials_per_site=400)
    figures = [layer.figures for layer in result.by_layer()]
    due = sum(round(own.due.value * 400) for own in figures)
    assert due > 0
    assert due == (result.trials.outcome == Outcome.DUE).sum()
    for own in figures:
        assert own.trials == 400
        total = own.masked.value + own.tolerable.value + own.sdc.value + own.due.value
        assert total == pytest.approx(1)


def test_head_tensors_are_sites(labelled: Data, small_net: nn.Module) -> None:
    rh.wrap_model(small_net, embeddings=rh.ClassEmbeddings(torch.randn(5, 16), tuple("abcde")))
    small_net.eval()
    labels = small_net(labelled[0]).argmax(dim=1)
    result = campaign(small_net, (labelled[0], labels))
    sites = {struck.site.name: struck for struck in result.sites}
    assert list(sites) == ["conv1", "conv2", "fc.latent", "fc.unit", "fc.projection", "fc"]
    assert [name for name, struck in sites.items() if struck.in_classifier] == list(sites)[2:]
    assert result.scope("last").layers == ("fc.latent", "fc.projection")
    assert result.scope("last_all").layers == ("fc.latent", "fc.unit", "fc.projection", "fc")
    assert result.scope("network").total_bits == (6 * 36 + 6 * 36 + 16 + 5) * 32


def test_a_fault_in_the_cosine_is_scaled_one_in_the_logits_is_not(labelled: Data, small_net: nn.Module) -> None:
    rh.wrap_model(small_net, embeddings=rh.ClassEmbeddings(torch.randn(5, 16), tuple("abcde")))
    small_net.eval()
    images = labelled[0][:1]
    golden = small_net(images)
    deltas = []
    for layer in ("fc.projection", "fc"):
        with rh.inject(small_net, rh.BitFlip(layer=layer, neuron=(2,), bit=31)):
            deltas.append(float((small_net(images) - golden)[0, 2].detach()))
    assert deltas[0] == pytest.approx(deltas[1], rel=1e-4)
    assert deltas[0] == pytest.approx(-2 * float(golden[0, 2].detach()), rel=1e-4)


def test_planted_injector_that_does_nothing_is_caught(
    small_net: nn.Module, labelled: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "apply_masks", lambda held, keep, flip: held.clone())
    with pytest.raises(InjectionError, match="other bits than those drawn"):
        campaign(small_net, labelled)
    assert hooks(small_net) == 0


def test_ranges_are_the_largest_absolute_outputs(small_net: nn.Module, images: Tensor) -> None:
    small_net.eval()
    seen: dict[str, float] = {}

    def record(name: str) -> None:
        small_net.get_submodule(name).register_forward_hook(
            lambda _m, _i, out: seen.__setitem__(name, max(seen.get(name, 0.0), float(out.detach().abs().max())))
        )

    sites = find_sites(small_net, images[:3]).reached
    for site in sites:
        record(site.name)
    with torch.inference_mode():
        for batch in images.split(5):
            small_net(batch)
    ranges = profile_ranges(small_net, [(batch, None) for batch in images.split(5)], sites, batch_size=5)
    assert ranges.limits == pytest.approx(seen)


class Random(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand(1)


class Stateful(nn.Linear):
    runs = 0
    limit = 10**9

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return super().forward(x) * (1 if self.runs < self.limit else 2)


@pytest.mark.parametrize(("kind", "message"), [(Random, "different logits"), (Stateful, "changed the model")])
def test_a_model_that_does_not_repeat_itself_is_refused(kind: type[nn.Linear], message: str) -> None:
    model = nn.Sequential(nn.Flatten(), kind(4, 3))
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([50.0, 0.0, 0.0]))
    data = (torch.randn(6, 4), torch.zeros(6, dtype=torch.long))
    if kind is Stateful:
        campaign(model, data, batch_size=20)
        model[1].limit, model[1].runs = model[1].runs, 0  # changes in the last pass
    with pytest.raises(InjectionError, match=message):
        campaign(model, data, batch_size=20)


IMAGES, LABELS = torch.zeros(24, 3, 6, 6), torch.zeros(24, dtype=torch.long)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "data is empty"),
        ((IMAGES[:0], LABELS[:0]), "data is empty"),
        ([(IMAGES, LABELS.float())], "integer labels"),
        ([IMAGES], "batches of"),
        (IMAGES, "must be an iterable"),
        (7, "must be an iterable"),
        ([(IMAGES, LABELS[:3])], "24 images and 3 labels"),
        ([(IMAGES, LABELS), (IMAGES[:, :, :3], LABELS)], "differ in shape"),
        ((IMAGES, LABELS + 5), "labels from 0 to 4"),
        ((IMAGES, LABELS - 1), "labels from 0 to 4"),
    ],
)
def test_bad_data_is_refused(small_net: nn.Module, data: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        campaign(small_net, data)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"protocol": "goldeneye"}, "calibration=train_loader"),
        ({"protocol": "golden"}, 'protocol must be "goldeneye" or "raw", found "golden"'),
        ({"protocol": ["raw"]}, 'protocol must be "goldeneye" or "raw"'),
        (
            {"design": 100, "trials_per_site": None},
            r"design must be a design, such as UniformDesign\(trials_per_site=1000\); found 100",
        ),
        ({"until": 0.1}, r"until must be a StoppingRule, such as StoppingRule\(half_width=0.001\)"),
        ({"fault": "flip"}, "fault must be a FaultModel"),
        ({"layers": []}, "layers must be a sequence of strings"),
        ({"layers": "fc"}, "layers must be a sequence of strings"),
        ({"modules": nn.GELU}, r"modules must be a sequence of names and classes, such as \[nn\.GELU\]"),
        ({"trials_per_site": 0}, "trials_per_site must be a whole number of at least 1"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"chunk_size": 6, "batch_size": 4}, "chunk_size must be a multiple of batch_size, 4; found 6"),
        ({"memory_limit": 0}, "memory_limit must be a whole number of at least 1"),
        ({"engine": "fast"}, 'engine must be "incremental" or "full", found "fast"'),
        ({"progress": 3}, r"progress must be True, False or a function of \(done, total\), found 3"),
        ({"shard": 0}, r"shard must be a Shard, such as Shard\(rank=0, world_size=4\)"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"seed": "0"}, "seed must be a whole number"),
        ({"seed": True}, "seed must be a whole number"),
        ({"seed": 2**64}, "seed must be a whole number"),
        ({"design": rh.UniformDesign(trials_per_site=9)}, "trials_per_site= or design=, not both"),
        ({"config": rh.CampaignConfig()}, r"config= or trials_per_site=, not both.*UniformDesign\(trials_per_site="),
        (
            {"config": rh.CampaignConfig(), "trials_per_site": None},
            r"config and protocol\. .* dataclasses\.replace\(config, protocol=",
        ),
        ({"model": "resnet"}, "model must be a Module"),
    ],
)
def test_wrong_choices_are_refused(
    small_net: nn.Module, labelled: Data, choices: dict[str, object], message: str
) -> None:
    options: dict = {"model": small_net, "data": labelled, **choices}
    with pytest.raises(ArgumentError, match=message):
        campaign(**options)


def test_wrong_protocols_are_refused() -> None:
    with pytest.raises(ArgumentError, match="range_detector must be"):
        rh.Protocol(name="mine", range_detector="clip")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="min_top2diff must be"):
        rh.Protocol(name="mine", min_top2diff=1.0)


def test_what_does_not_fit_the_model_is_refused(small_net: nn.Module, labelled: Data) -> None:
    with pytest.raises(DataError, match="calibration is empty"):
        campaign(small_net, labelled, protocol="goldeneye", calibration=[])
    with pytest.raises(FaultError, match="model's sites are: conv1, conv2, fc"):
        campaign(small_net, labelled, layers=["fc1"])
    with pytest.raises(ForwardError, match="cannot run on a batch of shape"):
        campaign(small_net, (labelled[0].half(), labelled[1]))


def test_a_config_runs_the_same_campaign_as_its_choices(small_net: nn.Module, labelled: Data) -> None:
    single = campaign(small_net, labelled, seed=5, layers=["conv*"], batch_size=8)
    config = rh.CampaignConfig(
        protocol=rh.Protocol.named("raw"),
        design=rh.UniformDesign(trials_per_site=60),
        seed=5,
        layers=["conv*"],
        batch_size=8,
    )
    for again in (config, single.config):
        result = rh.run_campaign(small_net, labelled, again, progress=False)
        assert result.config == single.config
        for name, column in single.trials.columns.items():
            assert result.trials.columns[name].tobytes() == column.tobytes(), name


def test_numpy_seeds_are_seeds(small_net: nn.Module, labelled: Data, tmp_path: Path) -> None:
    result = campaign(small_net, labelled, seed=np.int64(3))
    assert rh.CampaignResult.load(result.save(tmp_path / "r")).config.seed == 3


class BatchStatistics(nn.Sequential):
    """A network in which each image of a batch sees the others."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten(), nn.Linear(64, 5)
        )


def test_faults_that_would_leak_into_other_images_are_refused(images: Tensor) -> None:
    model = BatchStatistics().eval()
    labels = model(images).argmax(dim=1)
    with pytest.raises(InjectionError, match=r"at '0' changes the logits of other images .* batch_size=1"):
        campaign(model, (images, labels))
    single = torch.stack([model(image[None])[0] for image in images]).argmax(dim=1)
    assert len(campaign(model, (images, single), batch_size=1).trials) == 120


def test_a_campaign_leaves_the_model_fit_for_training(small_net: nn.Module, labelled: Data) -> None:
    class Caching(nn.Module):
        scale: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.scale is None:
                self.scale = torch.ones(1)
            return x * self.scale

    small_net.dropout = Caching()
    campaign(small_net, labelled)
    small_net.train()(labelled[0]).sum().backward()
    assert small_net.fc.weight.grad is not None


def test_a_tie_is_a_corrupted_prediction_whatever_the_class() -> None:
    """An overflowing norm leaves all logits equal; argmax would then name class 0 and call that unharmed."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 5))
    rh.wrap_model(model, embeddings=rh.ClassEmbeddings(torch.randn(5, 16), tuple("abcde")))
    images = torch.randn(40, 6)
    labels = model(images).argmax(dim=1)
    result = campaign(model, (images, labels), layers=["1.latent"], trials_per_site=1500)
    overflowed = np.abs(result.trials.after) > 1e30
    assert overflowed.sum() > 10
    assert {0} < set(labels.tolist())
    assert (result.trials.outcome[overflowed] == Outcome.SDC).all()


def test_nothing_to_strike_is_refused(small_net: nn.Module, labelled: Data) -> None:
    images = labelled[0]
    wrong = (small_net.eval()(images).argmax(dim=1) + 1) % 5
    with pytest.raises(InjectionError, match="none of the 24 images correctly"):
        campaign(small_net, (images, wrong))
    with pytest.raises(ModelError, match="logits of shape"):
        campaign(nn.Conv2d(3, 5, 1), labelled)


def test_models_whose_layers_no_hook_reaches_are_refused(small_net: nn.Module, labelled: Data) -> None:
    with pytest.raises(ModelError, match=r"compiled, .* model\._orig_mod"):
        campaign(torch.compile(small_net, backend="eager"), labelled)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions of torch advise against tracing
        traced = torch.jit.trace(small_net.eval(), labelled[0])
    with pytest.raises(ModelError, match="TorchScript"):
        campaign(traced, labelled)
