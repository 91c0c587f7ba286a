"""Campaigns on quantised models: both engines agree, and what holds no plain values is named."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import resilient_heads as rh
from helpers.small_net import IMAGES, SmallNet, small_campaign
from resilient_heads.errors import FaultError, InjectionError
from resilient_heads.injection.sites.find import find_sites

pytestmark = [
    pytest.mark.engine,
    pytest.mark.filterwarnings("ignore::UserWarning"),  # of PyTorch about its quantised tensors
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning"),
]


def packed(dtype: torch.dtype) -> nn.Module:
    if torch.backends.quantized.engine == "none":
        pytest.skip("this PyTorch has no quantised kernels")
    return torch.ao.quantization.quantize_dynamic(SmallNet(), {nn.Linear}, dtype=dtype)


def torchao(config: str) -> nn.Module:
    quantization = pytest.importorskip("torchao.quantization", exc_type=ImportError)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 64), nn.ReLU(), nn.Linear(64, 5))
    quantization.quantize_(model.eval(), getattr(quantization, config)())
    return model


def recurrent() -> nn.Module:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.LSTM(36, 8, batch_first=True)
            self.fc = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.rows(x.flatten(2).reshape(len(x), 12, 36))[0][:, -1])

    if torch.backends.quantized.engine == "none":
        pytest.skip("this PyTorch has no quantised kernels")
    return torch.ao.quantization.quantize_dynamic(Rows().eval(), {nn.LSTM})


def static() -> nn.Module:
    if torch.backends.quantized.engine == "none":
        pytest.skip("this PyTorch has no quantised kernels")
    quantization = torch.ao.quantization
    model = nn.Sequential(
        quantization.QuantStub(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 5),
        quantization.DeQuantStub(),
    ).eval()  # fmt: skip
    model.qconfig = quantization.get_default_qconfig(torch.backends.quantized.engine)
    quantization.prepare(model, inplace=True)(IMAGES)
    return quantization.convert(model)


KINDS: dict[str, tuple[Callable[[], nn.Module], int, set[str]]] = {
    "torch.ao int8": (lambda: packed(torch.qint8), 1, {"conv1", "conv2", "fc"}),
    "torch.ao float16": (lambda: packed(torch.float16), 8, {"conv1", "conv2", "fc"}),
    "torch.ao LSTM": (recurrent, 1, {"fc"}),
    "torchao int8 weights": (lambda: torchao("Int8WeightOnlyConfig"), 8, {"0", "3", "5"}),
    "torchao int8": (lambda: torchao("Int8DynamicActivationInt8WeightConfig"), 8, {"0", "3", "5"}),
    "torchao float8 weights": (lambda: torchao("Float8WeightOnlyConfig"), 8, {"0", "3", "5"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_engines_agree_on_quantised_models(kind: str) -> None:
    build, batch_size, layers = KINDS[kind]
    model = build()
    with torch.no_grad():
        labels = torch.cat([model(image[None]) for image in IMAGES]).argmax(dim=1)
    full, incremental = (
        small_campaign(model, (IMAGES, labels), engine=engine, trials_per_site=16, batch_size=batch_size)
        for engine in ("full", "incremental")
    )
    assert layers <= set(full.record.layers)
    for name, column in full.trials.columns.items():
        assert column.tobytes() == incremental.trials.columns[name].tobytes(), name


def test_scales_over_a_batch_are_refused_with_the_way_out() -> None:
    with pytest.raises(InjectionError, match=r"changes the logits of other images.*Pass batch_size=1"):
        small_campaign(packed(torch.qint8))


def test_layers_with_quantised_outputs_are_named() -> None:
    with pytest.raises(FaultError, match=r"1: its output is a quantised tensor.*4: its output is a quantised tensor"):
        small_campaign(static())
    sites = find_sites(static(), IMAGES[:3], modules=["5"])
    assert [site.name for site in sites.reached] == ["5"]
    assert set(sites.uninjectable) == {"1", "4"}


@pytest.mark.parametrize("part", ["weight.qdata", "weight.scale"])
def test_a_fault_in_a_part_of_a_quantised_weight_acts_and_is_undone(part: str) -> None:
    model = torchao("Int8WeightOnlyConfig")
    index = (0,) * model[5].get_parameter("weight").qdata.ndim if part == "weight.qdata" else None
    if index is None:
        index = (0,) * model[5].get_parameter("weight").scale.ndim
    with torch.no_grad():
        golden = model(IMAGES)
        with rh.inject(model, rh.WeightBitFlip(layer="5", parameter=part, index=index, bit=6)):
            assert not torch.equal(model(IMAGES), golden)
        assert torch.equal(model(IMAGES), golden)


def test_observers_keep_the_ranges_of_fault_free_images() -> None:
    """An observer looks at values in evaluation mode, too: a fault would decide the scales of the model to come."""
    quantization = torch.ao.quantization
    model = SmallNet()
    model.qconfig = quantization.QConfig(quantization.HistogramObserver, quantization.PerChannelMinMaxObserver)
    quantization.prepare(model, inplace=True)
    for batch in (IMAGES[:0], IMAGES):
        model(batch) if len(batch) else None
        before = copy.deepcopy(model.state_dict())
        small_campaign(model, trials_per_site=16)
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]), name
