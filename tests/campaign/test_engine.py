"""The incremental engine against full passes of the model, trial by trial and bit by bit.

No test asserts that the engine could avoid a full pass: that depends on the kernels of the CPU. Where a test needs a
rerun, the model computes with integers, whose sums are exact in any order.
"""

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
from helpers.marked_pass import use_integers_
from resilient_heads.campaign.result.config import Engine
from resilient_heads.campaign.run.incremental_engine import GoldenPass, IncrementalEngine
from resilient_heads.campaign.trials.columns import Trials
from resilient_heads.campaign.trials.outcomes import Outcome
from resilient_heads.errors import ArgumentError, InjectionError
from resilient_heads.incremental.recording.forward_slice import ForwardSlice
from resilient_heads.incremental.slice_runner import SliceRunner

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


def equal_trials(model: nn.Module, images: Tensor, labels: Tensor, **choices: Any) -> Trials:
    """Run both engines, require the same bits in every column of every trial, and return the trials."""
    incremental, full = (
        rh.run_campaign(model, (images, labels), protocol="raw", engine=engine, **{"progress": False, **choices}).trials
        for engine in ("incremental", "full")
    )
    for name, column in incremental.columns.items():
        assert column.tobytes() == full.columns[name].tobytes(), name
    return incremental


def assert_engines_agree(
    model: nn.Module, images: Tensor, *, trials: int = 12, batch_size: int = 8, **choices: object
) -> None:
    """Run both engines on images with the model's labels; require the same trials and an unchanged model."""
    model.eval()
    with torch.no_grad():
        output = model(images)
    labels = getattr(output, "logits", output).argmax(dim=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    equal_trials(model, images, labels, trials_per_site=trials, batch_size=batch_size, **choices)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(module._forward_hooks for module in model.modules())


QUICK = ("resnet", "vit", "text-guided")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES]
)
def test_engines_agree_on_architectures(name: str) -> None:
    assert_engines_agree(ARCHITECTURES[name](), torch.randn(10, 3, 32, 32))


@pytest.mark.parametrize(("name", "pixels"), [pytest.param("resnet", 96, marks=pytest.mark.slow), ("mobilenet", 64)])
def test_engines_agree_on_large_feature_maps(name: str, pixels: int) -> None:
    assert_engines_agree(ARCHITECTURES[name](), torch.randn(10, 3, pixels, pixels))


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_engines_agree_with_any_number_of_threads(threads: int) -> None:
    before = torch.get_num_threads()
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    try:
        assert_engines_agree(ARCHITECTURES["resnet"](), torch.randn(10, 3, 32, 32))
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_engines_agree_in_16_bit_formats(dtype: torch.dtype) -> None:
    assert_engines_agree(ARCHITECTURES["resnet"]().to(dtype), torch.randn(10, 3, 32, 32, dtype=dtype))


def test_engines_agree_in_channels_last_format() -> None:
    images = torch.randn(10, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    assert_engines_agree(ARCHITECTURES["resnet"]().to(memory_format=torch.channels_last), images)


def test_engines_agree_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_engines_agree(ARCHITECTURES["resnet"](), torch.randn(10, 3, 32, 32))


@pytest.mark.slow
def test_engines_agree_when_memory_needs_several_golden_passes() -> None:
    assert_engines_agree(ARCHITECTURES["resnet"](), torch.randn(10, 3, 32, 32), memory_limit=2_000_000)


def test_a_site_above_the_memory_limit_takes_full_passes(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert_engines_agree(ExactNet(), torch.randn(10, 6).round(), memory_limit=1)
    assert "of golden content; memory_limit is 0.00 MB" in caplog.text


@pytest.mark.parametrize("batch_size", [1, 2, 5, 12, 50])
def test_engines_agree_at_every_batch_size(batch_size: int) -> None:
    assert_engines_agree(ARCHITECTURES["resnet"](), torch.randn(10, 3, 32, 32), trials=6, batch_size=batch_size)


class ExactNet(nn.Module):
    """Linear layers with integer weights: every sum is exact on every CPU, so that reruns are never blocked."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
        with torch.no_grad():
            use_integers_(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_a_model_of_exact_operations_takes_no_full_passes(caplog: pytest.LogCaptureFixture) -> None:
    assert_engines_agree(ExactNet(), torch.randn(10, 6).round())
    assert "full pass" not in caplog.text


class Decides(nn.Module):
    """A model whose Python code looks at values."""

    def __init__(self, step: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = self.step(x)
        return self.third(torch.relu(self.second(x)))


def _threaded(x: Tensor) -> Tensor:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.mul, x, 2).result()


def _dropped(x: Tensor) -> Tensor:
    torch.manual_seed(3)
    return F.dropout(x, 0.3, True)


DECISIONS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
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
@pytest.mark.parametrize("kind", DECISIONS)
def test_a_site_that_cannot_be_rerun_takes_full_passes_and_a_log_entry_says_why(
    kind: str, batch_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    step, reason = DECISIONS[kind]
    with caplog.at_level(logging.WARNING):
        assert_engines_agree(Decides(step), torch.randn(12, 6), batch_size=batch_size)
    messages = [record.message for record in caplog.records if "'first' takes a full pass" in record.message]
    assert len(messages) == 1
    assert reason in messages[0]


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
def test_engines_agree_on_models_with_state(kind: str) -> None:
    model, images = Keeps(kind).eval(), torch.randn(16, 6)
    with torch.no_grad():
        labels = model(images[:8].clone()).argmax(dim=1).tolist()
        labels += model(images[8:].clone()).argmax(dim=1).tolist()
    trials = equal_trials(model, images, torch.tensor(labels), trials_per_site=100, batch_size=8)
    assert (trials.outcome != Outcome.MASKED).any()


LEAKS: dict[str, Callable[[Tensor], Tensor]] = {
    "down": lambda x: x - x[-1:],
    "up": lambda x: x - x[:1],
    "for large values only": lambda x: x / x.abs().amax().clamp(min=10),
}


@pytest.mark.parametrize("engine", ["incremental", "full"])
@pytest.mark.parametrize("kind", LEAKS)
def test_a_model_that_mixes_images_is_refused(kind: str, engine: Engine) -> None:
    model, images = Decides(LEAKS[kind]).eval(), torch.randn(16, 6)
    labels = torch.cat([model(part).argmax(dim=1) for part in images.split(8)])
    with pytest.raises(InjectionError, match="changes the logits of other images"):
        rh.run_campaign(
            model,
            (images, labels),
            protocol="raw",
            trials_per_site=16,
            batch_size=8,
            engine=engine,
            progress=False,
        )


@pytest.mark.parametrize(
    "choices", [{"engine": "Rerun"}, {"memory_limit": "1GB"}, {"memory_limit": -5}, {"progress": "bar"}]
)
def test_a_wrong_choice_is_refused(choices: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(choices))):
        rh.run_campaign(
            Decides(lambda x: x), (torch.randn(16, 6), torch.zeros(16, dtype=torch.long)), protocol="raw", **choices
        )


def test_a_rerun_that_differs_in_a_whole_batch_ends_all_reruns(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = SliceRunner.run
    first_site: set[int] = set()

    def wrong_after_first_site(runner: SliceRunner, forward_slice: ForwardSlice, *rest: Any) -> Tensor:
        logits = run(runner, forward_slice, *rest)
        if forward_slice.source.view.size[0] == 2:  # the check of two images before the campaign
            return logits
        first_site.add(forward_slice.source.steps_before if not first_site else -1)
        correct = forward_slice.source.steps_before in first_site
        return logits if correct else logits + 1

    monkeypatch.setattr(SliceRunner, "run", wrong_after_first_site)
    done: list[int] = []
    with caplog.at_level(logging.WARNING):
        assert_engines_agree(
            ExactNet(), torch.randn(10, 6).round(), trials=24, progress=lambda trials, total: done.append(trials)
        )
    assert "every site takes a full pass of the model: a rerun of a whole batch differs" in caplog.text
    assert done == 2 * list(range(8, 24 * 3 + 1, 8))  # each engine reports a repeated batch once


def test_a_golden_pass_is_released_before_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine must not wait for the garbage collector."""
    kept: list[weakref.ref[Tensor]] = []
    alive = []
    golden_pass = IncrementalEngine.golden_pass

    def watched(*args: Any) -> GoldenPass:
        alive.append(sum(reference() is not None for reference in kept))
        golden = golden_pass(*args)
        kept.extend(weakref.ref(tensor) for tensor in golden.content.values())
        return golden

    monkeypatch.setattr(IncrementalEngine, "golden_pass", watched)
    gc.disable()
    try:
        assert_engines_agree(ExactNet(), torch.randn(10, 6).round(), trials=32)
    finally:
        gc.enable()
    assert alive == [0] * 5  # the sites that are checked before the trials share a golden pass
    assert kept


def test_faults_that_a_relu_hides_are_masked() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    with torch.no_grad():
        model[0].bias.fill_(-1e3)  # the ReLU never fires
        model[2].bias.copy_(torch.tensor([3.0, 2.0, 1.0, 0.0]))
    images, labels = torch.rand(12, 6), torch.zeros(12, dtype=torch.long)
    result = rh.run_campaign(model, (images, labels), protocol="raw", trials_per_site=200, progress=False)
    first = result.trials.where(result.trials.site == 0)
    unmasked = first.outcome != Outcome.MASKED
    assert (first.bit[unmasked] == 31).all()
    assert unmasked.any()
    assert_engines_agree(model, images, trials=100)


class Net(nn.Module):
    """A small network built from a list of parts."""

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
def test_engines_agree_on_random_networks(parts: list[str], inplace: bool, seed: int) -> None:
    model = Net(parts, inplace, seed)
    assert_engines_agree(model, torch.randn(9, 4, 16, 16), trials=8, batch_size=8)


class Deep(nn.Module):
    """Eight convolutions, more than the engine also runs in full, with a change of the feature map after the third."""

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
def test_engines_agree_after_operations_that_windows_cannot_cross(change: str) -> None:
    assert_engines_agree(Deep(CHANGES[change]), torch.randn(12, 3, 20, 20), trials=40)
