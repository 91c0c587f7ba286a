"""The fast engine against the plain loop, trial by trial and bit by bit."""

import concurrent.futures
import gc
import logging
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision import models
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

import resilient_heads as rh
from resilient_heads.campaign.run.execution import Engine
from resilient_heads.campaign.run.incremental_engine import GoldenPass, IncrementalEngine
from resilient_heads.campaign.trials.outcomes import Outcome
from resilient_heads.errors import ArgumentError, InjectionError
from resilient_heads.incremental.recording.forward_slice import ForwardSlice
from resilient_heads.incremental.slice_runner import RerunResult, SliceRunner

pytestmark = pytest.mark.engine


def _convnext() -> nn.Module:
    block = models.convnext.CNBlockConfig
    return models.ConvNeXt([block(8, 16, 2), block(16, None, 2)], num_classes=10)


def _vit_of_transformers() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        num_labels=10,
    )
    return transformers.ViTForImageClassification(config)


def _mobilenet() -> nn.Module:
    setting = models.mobilenetv3.InvertedResidualConfig
    blocks = [
        setting(16, 3, 16, 16, True, "RE", 2, 1, 0.25),
        setting(16, 3, 32, 24, False, "RE", 2, 1, 0.25),
        setting(24, 5, 48, 24, True, "HS", 1, 1, 0.25),
    ]
    return models.MobileNetV3(blocks, 32, num_classes=10, dropout=0.2)


def _vit() -> nn.Module:
    model = models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=10)
    nn.init.normal_(model.heads.head.weight)  # it starts at zero, where all classes tie
    return model


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=10),
    "bottleneck": lambda: models.ResNet(models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=10, width_per_group=8),
    "vgg": lambda: nn.Sequential(models.vgg11_bn().features[:15], nn.Flatten(), nn.Linear(256 * 16, 10)),
    "densenet": lambda: models.DenseNet(growth_rate=8, block_config=(2, 2), num_init_features=8, num_classes=10),
    "mobilenet": _mobilenet,
    "swin": lambda: SwinTransformer(
        [4, 4], 8, [2, 1], [2, 2], [4, 4], num_classes=10, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2
    ),
    "vit": _vit,
    "convnext": _convnext,
    "googlenet": lambda: models.GoogLeNet(num_classes=10, aux_logits=False, init_weights=False),
    "transformers": _vit_of_transformers,
    "text-guided": lambda: rh.wrap_model(
        models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=10), embeddings="cifar10"
    ),
}


def equal(model: nn.Module, images: Tensor, *, trials: int = 12, batch_size: int = 8, **choices: object) -> None:
    """Run both engines; every column of every trial must have the same bits."""
    model.eval()
    with torch.no_grad():
        output = model(images)
    labels = getattr(output, "logits", output).argmax(dim=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    results = [
        rh.run_campaign(
            model,
            (images, labels),
            protocol="raw",
            trials_per_site=trials,
            batch_size=batch_size,
            engine=engine,
            **{"progress": False, **choices},
        )
        for engine in ("incremental", "full")
    ]
    for name, column in results[0].trials.columns.items():
        assert column.tobytes() == results[1].trials.columns[name].tobytes(), name
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(module._forward_hooks for module in model.modules())


QUICK = ("resnet", "vit", "text-guided")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES]
)
def test_the_engine_equals_the_plain_loop(name: str, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    equal(ARCHITECTURES[name](), torch.randn(10, 3, 32, 32))
    assert not [record for record in caplog.records if "full pass" in record.message]


@pytest.mark.parametrize(("name", "pixels"), [("resnet", 96), ("mobilenet", 64)])
def test_faults_followed_on_windows(name: str, pixels: int) -> None:
    equal(ARCHITECTURES[name](), torch.randn(10, 3, pixels, pixels))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_whatever_the_number_of_threads(threads: int) -> None:
    before = torch.get_num_threads()
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    try:
        equal(ARCHITECTURES["resnet"](), torch.randn(10, 3, 32, 32))
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_formats(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    equal(ARCHITECTURES["resnet"]().to(dtype), torch.randn(10, 3, 32, 32, dtype=dtype))


def test_channels_last() -> None:
    torch.manual_seed(0)
    images = torch.randn(10, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    equal(ARCHITECTURES["resnet"]().to(memory_format=torch.channels_last), images)


def test_autocast() -> None:
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        equal(ARCHITECTURES["resnet"](), torch.randn(10, 3, 32, 32))


@pytest.mark.slow
def test_several_golden_passes_when_memory_is_short(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model, images = ARCHITECTURES["resnet"](), torch.randn(10, 3, 32, 32)
    equal(model, images, memory_limit=2_000_000)
    with caplog.at_level(logging.WARNING):
        equal(model, images, memory_limit=1000)
    assert "more than memory_limit, 0.00 MB" in caplog.text


@pytest.mark.slow
def test_a_batch_that_is_not_full_and_a_batch_of_one() -> None:
    torch.manual_seed(0)
    for batch_size in (1, 2, 5, 12, 50):
        equal(ARCHITECTURES["resnet"](), torch.randn(10, 3, 32, 32), trials=6, batch_size=batch_size)


class Looks(nn.Module):
    """A model whose Python code looks at values."""

    def __init__(self, look: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.look = look

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = self.look(x)
        return self.third(torch.relu(self.second(x)))


def _threaded(x: Tensor) -> Tensor:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.mul, x, 2).result()


def _dropped(x: Tensor) -> Tensor:
    torch.manual_seed(3)
    return F.dropout(x, 0.3, True)


LOOKS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "a branch": (lambda x: x * 2 if float(x[0, 0]) == 12345 else x, "looks at values in Python"),
    "numpy": (lambda x: torch.from_numpy(x.numpy() * np.float32(2)), "a rerun differs from a full pass"),
    "numpy for large values only": (
        lambda x: x.clamp(max=100.0) if x.numpy().max() > 100 else x,
        "a rerun differs from a full pass",
    ),
    "a shape": (lambda x: x + x[x > 0.5].numel() * 0, "shape of a result depends on values"),
    "another thread": (_threaded, "a rerun differs from a full pass"),
    "random numbers": (_dropped, "draws random numbers"),
}


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("kind", LOOKS)
def test_what_cannot_be_run_in_part_is_run_in_full_and_said_so(
    kind: str, batch_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    look, reason = LOOKS[kind]
    with caplog.at_level(logging.WARNING):
        equal(Looks(look), torch.randn(12, 6), batch_size=batch_size)
    told = [record.message for record in caplog.records if "full pass of" in record.message]
    assert len(told) == 1
    assert "'first'" in told[0]
    assert reason in told[0]


class Keeps(nn.Module):
    """Models that keep memory, or shapes, from pass to pass."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second, self.third = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.register_buffer("work", torch.zeros(64, 6))
        self.register_buffer("table", torch.randn(64, 6))
        self.register_buffer("out", torch.zeros(64, 4))
        self.rows = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "an input written over":
            x.sub_(0.5).div_(2)
        x = torch.relu(self.first(x))
        if self.kind == "a scale by the batch":
            x = x * (len(x) / 8)
        if self.kind == "a row of a table for each place":
            x = x + self.table[: len(x)]
        if self.kind == "images in another order":
            x = torch.relu(x.flip(0) @ self.second.weight).flip(0)
        if self.kind == "a workspace":
            self.work[: len(x)].copy_(x)
            x = self.work[: len(x)]
        if self.kind == "half a workspace":
            self.work[: len(x), :3] = x[:, 3:]
            x = self.work[: len(x)] + x
        if self.kind == "a cache for each batch size":
            if self.rows != len(x):
                self.rows, self.cached = len(x), torch.arange(6.0).sin()
            x = x + self.cached
        if self.kind == "a division that zeros would break":
            x = x + (1000 // (x * 10).clamp(0, 100).long().clamp(min=1)).float()
        x = self.third(torch.relu(self.second(x)))
        if self.kind == "the same memory for every result":
            self.out[: len(x)].copy_(x)
            return self.out[: len(x)]
        return x


KEPT = [
    "an input written over",
    "a scale by the batch",
    "a row of a table for each place",
    "images in another order",
    "a workspace",
    "half a workspace",
    "a cache for each batch size",
    "a division that zeros would break",
    "the same memory for every result",
]


@pytest.mark.parametrize("kind", KEPT)
def test_models_that_keep_something(kind: str) -> None:
    torch.manual_seed(0)
    model, images = Keeps(kind).eval(), torch.randn(16, 6)
    with torch.no_grad():
        labels = model(images[:8].clone()).argmax(dim=1).tolist()
        labels += model(images[8:].clone()).argmax(dim=1).tolist()
    results = [
        rh.run_campaign(
            model,
            (images, torch.tensor(labels)),
            protocol="raw",
            trials_per_site=100,
            batch_size=8,
            engine=engine,
            progress=False,
        ).trials
        for engine in ("incremental", "full")
    ]
    for name, column in results[0].columns.items():
        assert column.tobytes() == results[1].columns[name].tobytes(), name
    assert (results[0].outcome != Outcome.MASKED).any()


LEAKS: dict[str, Callable[[Tensor], Tensor]] = {
    "down": lambda x: x - x[-1:],
    "up": lambda x: x - x[:1],
    "for large values only": lambda x: x / x.abs().amax().clamp(min=10),
}


@pytest.mark.parametrize("engine", ["incremental", "full"])
@pytest.mark.parametrize("kind", LEAKS)
def test_faults_that_reach_other_images_are_refused(kind: str, engine: Engine) -> None:
    torch.manual_seed(0)
    model, images = Looks(LEAKS[kind]).eval(), torch.randn(16, 6)
    labels = torch.cat([model(part).argmax(dim=1) for part in images.split(8)])
    with pytest.raises(InjectionError, match="reaches other images of its batch"):
        rh.run_campaign(
            model,
            (images, labels),
            protocol="raw",
            trials_per_site=16,
            batch_size=8,
            engine=engine,
            progress=False,
        )


def test_an_engine_that_does_not_exist() -> None:
    torch.manual_seed(0)
    model, images = Looks(lambda x: x), torch.randn(16, 6)
    for choices in ({"engine": "Rerun"}, {"memory_limit": "1GB"}, {"memory_limit": -5}, {"progress": "bar"}):
        with pytest.raises(ArgumentError, match=next(iter(choices))):
            rh.run_campaign(model, (images, torch.zeros(16, dtype=torch.long)), protocol="raw", **choices)


def test_a_rerun_that_goes_wrong_is_noticed_and_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is only done for whole batches is checked on whole batches."""
    run = SliceRunner.run
    right: set[int] = set()

    def wrong(runner: SliceRunner, forward_slice: ForwardSlice, *rest: Any) -> RerunResult:
        result = run(runner, forward_slice, *rest)
        if forward_slice.source.view.size[0] == 2:  # the check before the campaign
            return result
        if not right:  # the first site, so that progress has been reported
            right.add(forward_slice.source.steps_before)
        if forward_slice.source.steps_before in right:
            return result
        return RerunResult(result.images.flip(0), result.logits)

    monkeypatch.setattr(SliceRunner, "run", wrong)
    told: list[int] = []
    with caplog.at_level(logging.WARNING):
        equal(
            ARCHITECTURES["resnet"](),
            torch.randn(10, 3, 32, 32),
            trials=24,
            progress=lambda done, total: told.append(done),
        )
    assert "a rerun of a whole batch differs from a full pass" in caplog.text
    assert told == 2 * list(range(8, told[-1] + 1, 8))  # by either engine; a batch that was run again is told once


def test_no_two_golden_passes_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is given back at once, and not when Python next looks for circles of references."""
    torch.manual_seed(0)
    kept: list[weakref.ref[Tensor]] = []
    alive = []
    golden = IncrementalEngine.golden_pass

    def watched(*args: Any) -> GoldenPass:
        alive.append(sum(ref() is not None for ref in kept))
        found = golden(*args)
        kept.extend(weakref.ref(tensor) for tensor in found.content.values())
        return found

    monkeypatch.setattr(IncrementalEngine, "golden_pass", watched)
    gc.disable()
    try:
        equal(ARCHITECTURES["resnet"](), torch.randn(10, 3, 32, 32), trials=32)
    finally:
        gc.enable()
    assert alive == [0] * 4
    assert kept


def test_rows_that_become_golden_are_let_go() -> None:
    """Everything before a ReLU that never fires is masked, and nothing is run for it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    with torch.no_grad():
        model[0].bias.fill_(-1e3)
        model[2].bias.copy_(torch.tensor([3.0, 2.0, 1.0, 0.0]))
    images = torch.rand(12, 6)
    labels = torch.zeros(12, dtype=torch.long)
    result = rh.run_campaign(model, (images, labels), protocol="raw", trials_per_site=200, progress=False)
    first = result.trials.where(result.trials.site == 0)
    unmasked = first.outcome != Outcome.MASKED
    assert (first.bit[unmasked] == 31).all()
    assert unmasked.any()
    equal(model, images, trials=100)


class Net(nn.Module):
    """A small network put together from a list of parts."""

    def __init__(self, parts: list[str], inplace: bool, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.parts = parts
        self.inplace = inplace
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in parts)
        self.norm = nn.BatchNorm2d(4)
        self.merge = nn.Conv2d(8, 4, 1)
        self.relu = nn.ReLU(inplace=inplace)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for part, conv in zip(self.parts, self.convs, strict=True):
            if part == "plain":
                x = self.relu(conv(x))
            elif part == "residual":
                y = self.norm(conv(x))
                y += x
                x = self.relu(y)
            elif part == "concat":
                x = self.relu(self.merge(torch.cat([x, conv(x)], dim=1)))
            elif part == "shared":
                x = self.shared(self.relu(self.shared(x)))
            elif part == "preactivated":
                x = conv(F.relu(x, inplace=self.inplace)) + x
            elif part == "view":
                y = conv(x)
                half = y[:, :2]
                half.mul_(0.5)
                x = y + x.flip(-1)
            elif part == "gate":
                x = x * torch.sigmoid(conv(x).mean((2, 3), keepdim=True))
        return self.fc(x.mean((2, 3)))


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    parts=st.lists(
        st.sampled_from(["plain", "residual", "concat", "shared", "preactivated", "view", "gate"]),
        min_size=1,
        max_size=4,
    ),
    inplace=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_networks_put_together_at_random(parts: list[str], inplace: bool, seed: int) -> None:
    model = Net(parts, inplace, seed)
    equal(model, torch.randn(9, 4, 16, 16), trials=8, batch_size=8)


class Deep(nn.Module):
    """Eight convolutions, more than the engine runs both ways, and something in their midst."""

    def __init__(self, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(3 if at == 0 else 6, 6, 3, padding=1) for at in range(8))
        self.fc = nn.Linear(6, 4)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        images = x
        for at, convolution in enumerate(self.convolutions):
            x = torch.relu(convolution(x))
            if at == 2:
                x = self.change(x, images)
        return self.fc(x.mean((2, 3)))


def _caught(x: Tensor, _: Tensor) -> Tensor:
    try:
        return F.conv2d(x, x.new_ones(6, 6, 50, 50))
    except RuntimeError:
        return x


WIDTH = torch.randn(20)
CHANGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "along the width": lambda x, _: x * WIDTH,
    "along the height": lambda x, _: x + WIDTH[:, None],
    "a value for each pixel": lambda x, _: x + torch.outer(WIDTH, WIDTH),
    "made in the pass": lambda x, _: x + torch.arange(20.0).div(20)[:, None],
    "along the channels": lambda x, _: x + torch.ones(6).cumsum(0)[:, None, None],
    "for each place in the batch": lambda x, _: x + torch.arange(40.0)[: len(x), None, None, None] / 40,
    "an image that all see": lambda x, images: x - images[-1:, :1],
    "a failure that is caught": _caught,
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_windows_meet(change: str, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    equal(Deep(CHANGES[change]), torch.randn(12, 3, 20, 20), trials=40)
    assert not [record for record in caplog.records if "full pass" in record.message]
