"""A fingerprint changes with any bit of anything that a model holds, and the environment with what changes results."""

import copy
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.testing._internal.two_tensor import TwoTensor

import resilient_heads as rh
from helpers.small_net import IMAGES, SmallNet, small_campaign
from resilient_heads.campaign.golden.digests import fingerprint
from resilient_heads.campaign.golden.environment import environment_of
from resilient_heads.errors import ModelError, ResultError

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # of PyTorch about its sparse and quantised tensors
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning"),
]


def linear(weight: Tensor) -> nn.Module:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight, requires_grad=weight.is_floating_point())
    return nn.Sequential(layer)


def held(tensor: Tensor, *, persistent: bool = True) -> nn.Module:
    module = nn.Module()
    module.register_buffer("held", tensor, persistent=persistent)
    return module


def quantised(model: nn.Module, dtype: torch.dtype = torch.qint8) -> nn.Module:
    if torch.backends.quantized.engine == "none":
        pytest.skip("this PyTorch has no quantised kernels")
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear, nn.LSTM}, dtype=dtype)


def static(weight: Tensor) -> nn.Module:
    if torch.backends.quantized.engine == "none":
        pytest.skip("this PyTorch has no quantised kernels")
    quantization = torch.ao.quantization
    model = nn.Sequential(quantization.QuantStub(), linear(weight), quantization.DeQuantStub()).eval()
    model.qconfig = quantization.get_default_qconfig(torch.backends.quantized.engine)
    quantization.prepare(model, inplace=True)
    model(torch.linspace(-1, 1, 2 * weight.shape[1]).view(2, -1))
    return quantization.convert(model)


def recurrent(weight: Tensor) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.LSTM(weight.shape[1], weight.shape[0] // 4)
    with torch.no_grad():
        layer.weight_ih_l0.copy_(weight)
    return quantised(nn.Sequential(layer))


def torchao(weight: Tensor, config: str) -> nn.Module:
    quantization = pytest.importorskip("torchao.quantization", exc_type=ImportError)
    model = linear(weight)
    quantization.quantize_(model, getattr(quantization, config)())
    return model


class Extra(nn.Module):
    """A module whose extra state is any object."""

    def __init__(self, state: Any) -> None:
        super().__init__()
        self.state = state

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state


def per_channel(weight: Tensor) -> Tensor:
    scales, points = torch.full((len(weight),), 0.1), torch.zeros(len(weight), dtype=torch.int64)
    return torch.quantize_per_channel(weight, scales, points, 0, torch.qint8)


KINDS: dict[str, Callable[[Tensor], nn.Module]] = {
    "plain": linear,
    "bfloat16": lambda w: linear(w).to(torch.bfloat16),
    "float8": lambda w: held(w.to(torch.float8_e4m3fn)),
    "complex": lambda w: held(torch.complex(w, w)),
    "conjugated": lambda w: held(torch.complex(w, w).conj()),
    "negated lazily": lambda w: held(torch.complex(w, w).conj().imag),
    "integers": lambda w: held((w * 100).int()),
    "booleans": lambda w: held(w > 0.5),
    "a view": lambda w: held(w.t()[1:, 1::2]),
    "a buffer outside the state dict": lambda w: held(w, persistent=False),
    "sparse": lambda w: held(w.to_sparse()),
    "sparse rows": lambda w: held(w.to_sparse_csr()),
    "sparse columns": lambda w: held(w.to_sparse_csc()),
    "sparse weight": lambda w: linear(w.to_sparse_csr()),
    "mkldnn": lambda w: held(w.to_mkldnn()),
    "nested": lambda w: held(torch.nested.nested_tensor([w[0], w[1, :3]])),
    "jagged": lambda w: held(torch.nested.nested_tensor([w[0], w[1, :3]], layout=torch.jagged)),
    "wrapper subclass": lambda w: linear(TwoTensor(torch.ones_like(w), w)),
    "quantised": lambda w: held(torch.quantize_per_tensor(w, 0.1, 0, torch.qint8)),
    "quantised by channel": lambda w: held(per_channel(w)),
    "parametrized": lambda w: parametrizations.weight_norm(linear(w)[0]),
    "torch.ao dynamic": lambda w: quantised(linear(w)),
    "torch.ao dynamic float16": lambda w: quantised(linear(w), torch.float16),
    "torch.ao dynamic LSTM": recurrent,
    "torch.ao static": static,
    "torchao int8 weights": lambda w: torchao(w, "Int8WeightOnlyConfig"),
    "torchao int8": lambda w: torchao(w, "Int8DynamicActivationInt8WeightConfig"),
    "torchao float8 weights": lambda w: torchao(w, "Float8WeightOnlyConfig"),
    "extra state of tensors": lambda w: Extra({"scale": [w, {"inner": w}]}),
    "extra state of NumPy": lambda w: Extra(w.numpy().copy()),
    "extra state of bytes": lambda w: Extra(w.numpy().tobytes()),
}
WEIGHT = torch.randn(8, 32, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("kind", KINDS)
def test_equal_models_have_one_fingerprint_and_a_changed_weight_another(kind: str) -> None:
    build, changed = KINDS[kind], WEIGHT.clone()
    changed[1, 2] = 2.0 if changed[1, 2] < 0.5 else -2.0
    first = fingerprint(build(WEIGHT))
    assert first == fingerprint(build(WEIGHT.clone()))
    assert first != fingerprint(build(changed))


def test_fingerprints_read_no_values_in_the_shape_of_a_text() -> None:
    """The text of a long tensor leaves out its middle."""
    long = torch.zeros(5000)
    other = long.clone()
    other[2500] = 1
    assert fingerprint(Extra((long,))) != fingerprint(Extra((other,)))


def test_names_shapes_dtypes_and_metadata_are_part_of_a_fingerprint() -> None:
    zero = torch.zeros(4, 2)
    models = [held(zero), held(zero.t()), held(zero.int()), held(zero.view(8)), held(zero.to_sparse()), Extra("a")]
    models += [Extra("b"), nn.Sequential(held(zero)), nn.ModuleDict({"0 (4, 2) float32;x": held(zero)})]
    models += [held(torch.quantize_per_tensor(zero, scale, 0, torch.qint8)) for scale in (0.1, 0.2)]
    prints = [fingerprint(model) for model in models]
    assert len(set(prints)) == len(models)


def test_an_object_at_another_address_is_the_same_extra_state() -> None:
    assert fingerprint(Extra([len, nn.Linear])) == fingerprint(Extra([len, nn.Linear]))
    assert fingerprint(Extra([object()])) == fingerprint(Extra([object()]))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_bit_of_every_tensor_counts(data: st.DataObject) -> None:
    model = SmallNet()
    model.register_buffer("table", torch.arange(12, dtype=torch.int16).view(3, 4), persistent=False)
    before = fingerprint(model)
    tensors = [*model.parameters(), *model.buffers()]
    tensor = data.draw(st.sampled_from(tensors)).detach()
    flat = tensor.view(-1).view(torch.uint8)
    place = data.draw(st.integers(0, len(flat) - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    flat[place] ^= bit
    assert fingerprint(model) != before
    flat[place] ^= bit
    assert fingerprint(model) == before


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Linear(2, 2, device="meta"), r"'weight' is on the meta device and has no values; load the weights first"),
        (nn.LazyLinear(2), r"'weight' has no size yet; run the model once"),
    ],
)
def test_weights_without_values_are_refused(model: nn.Module, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        fingerprint(model)


def test_memory_that_was_read_can_still_be_resized() -> None:
    """Sharded models give the memory of their parameters back between passes."""
    model = nn.Linear(8, 8)
    fingerprint(model)
    model.weight.untyped_storage().resize_(0)


def autocast() -> Any:
    return torch.autocast("cpu", dtype=torch.bfloat16)


class Changed:
    """A setting of PyTorch that holds inside a block."""

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], Any], value: Any) -> None:
        self._read, self._write, self._value = read, write, value

    def __enter__(self) -> None:
        self._before = self._read()
        self._write(self._value)

    def __exit__(self, *error: object) -> None:
        self._write(self._before)


def denormals() -> bool:
    """PyTorch cannot say whether it flushes denormal numbers; by default it does not."""
    return False


SETTINGS: dict[str, tuple[Callable[[], Any], str]] = {
    "autocast": (autocast, "autocast is off there and torch.bfloat16 now"),
    "default_dtype": (
        lambda: Changed(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
        r"call torch.set_default_dtype\(torch.float32\)",
    ),
    "float32_precision": (
        lambda: Changed(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"),
        "set the same torch.set_float32_matmul_precision",
    ),
    "denormals": (lambda: Changed(denormals, torch.set_flush_denormal, True), "denormals is kept there and flushed"),
    "deterministic_algorithms": (
        lambda: Changed(torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True),
        "call torch.use_deterministic_algorithms",
    ),
    "mkldnn": (lambda: torch.backends.mkldnn.flags(enabled=False), "mkldnn is on there and off now"),
    "attention": (
        lambda: torch.nn.attention.sdpa_kernel([torch.nn.attention.SDPBackend.MATH]),
        "attention is flash, math there and math now",
    ),
    "threads": (lambda: Changed(torch.get_num_threads, torch.set_num_threads, 3), "set OMP_NUM_THREADS"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_environment_holds_settings_that_change_results(name: str) -> None:
    before = environment_of(SmallNet())
    with SETTINGS[name][0]():
        inside = environment_of(SmallNet())
    assert [key for key in before if inside[key] != before[key]] == [name]
    assert environment_of(SmallNet()) == before


@pytest.mark.parametrize("name", SETTINGS)
def test_a_campaign_goes_on_only_with_the_settings_of_its_start(name: str, tmp_path: Path) -> None:
    setting, words = SETTINGS[name]
    data = IMAGES, torch.zeros(16, dtype=torch.int64)
    model = SmallNet(end=lambda logits: logits.float() + torch.eye(5)[0] * 99)
    small_campaign(model, data, output=tmp_path / "campaign", layers=["fc"])
    with setting(), pytest.raises(ResultError, match=words):
        small_campaign(model, data, output=tmp_path / "campaign", layers=["fc"])


def test_a_quantised_model_with_another_weight_is_another_model(tmp_path: Path) -> None:
    """Torch.ao keeps weights in objects, not in tensors."""
    first = quantised(SmallNet(), torch.float16)
    changed = SmallNet()
    with torch.no_grad():
        changed.fc.weight[0, 0] += 0.5
    second = quantised(changed, torch.float16)
    result = small_campaign(first, output=tmp_path / "campaign")
    assert small_campaign(copy.deepcopy(first), output=tmp_path / "campaign").record.identity == result.record.identity
    with pytest.raises(ResultError, match="load the same weights"):
        small_campaign(second, output=tmp_path / "campaign")
    with pytest.raises(ModelError, match="pass the model that the campaign ran on"):
        rh.replay(result, second, (IMAGES, torch.zeros(16, dtype=torch.int64)), site="fc", trial=0)


def test_a_float_of_packed_weights_is_read_exactly() -> None:
    """Scales differ in one bit: text of limited length would hide that."""
    scale = 0.1
    nearby = struct.unpack("<d", struct.pack("<q", struct.unpack("<q", struct.pack("<d", scale))[0] + 1))[0]
    first, second = (held(torch.quantize_per_tensor(WEIGHT, one, 0, torch.qint8)) for one in (scale, nearby))
    assert fingerprint(first) != fingerprint(second)
