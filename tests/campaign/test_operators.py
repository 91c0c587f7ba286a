"""Any operator and any object in a model's forward: both engines give the same trials, and name why one is slower."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.masked import masked_tensor
from torch.nn.attention.flex_attention import flex_attention
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.checkpoint import checkpoint

import resilient_heads as rh
from helpers.small_net import IMAGES, SmallNet, small_campaign
from resilient_heads.campaign.run.incremental_engine import IncrementalEngine
from resilient_heads.campaign.trials.columns import Trials
from resilient_heads.errors import ForwardError, InjectionError

pytestmark = [
    pytest.mark.engine,
    pytest.mark.filterwarnings("ignore::UserWarning"),  # of PyTorch about its masked, nested and quantised tensors
]


class Named(Tensor):
    """A subclass without behaviour of its own."""


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


@torch.library.custom_op("resilient_heads_tests::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    return x * 2


@torch.library.custom_op("resilient_heads_tests::double_", mutates_args=("x",))
def double_(x: Tensor) -> None:
    x.mul_(2)


def marked(x: Tensor) -> Tensor:
    with torch.profiler.record_function("middle"), torch.autograd.profiler.record_function("inner", "argument"):
        return x.mul(1)


def saved_on_cpu(x: Tensor) -> Tensor:
    with torch.autograd.graph.save_on_cpu():
        return x.mul(1)


def in_bfloat16(x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return F.conv2d(x, torch.ones(4, 4, 1, 1)).float()


def doubled_in_place(x: Tensor) -> Tensor:
    x = x.mul(1)
    double_(x)
    return x


def with_noise(x: Tensor) -> Tensor:
    return x + torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(0))


def with_dropout(x: Tensor) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return F.dropout(x, 0.5, training=True)


def sorted_by_attention(x: Tensor) -> Tensor:
    tokens = x.flatten(2)[:, None]
    return flex_attention(tokens, tokens, tokens).view(x.shape)


def through_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(np.tanh(x.numpy()))


IDENTITIES: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "profiler marks": (marked, ""),
    "saved tensors": (saved_on_cpu, ""),
    "checkpoint": (lambda x: checkpoint(lambda y: y.mul(1), x, use_reentrant=False), ""),
    "quantised": (lambda x: x + torch.quantize_per_tensor(x, 0.1, 0, torch.qint8).int_repr() * 0, "a quantised tensor"),
    "sparse": (lambda x: x.to_sparse().to_dense(), "a result is a sparse_coo tensor"),
    "mkldnn": (lambda x: x.to_mkldnn().to_dense(), "a result is a _mkldnn tensor"),
    "nested": (lambda x: torch.stack(torch.nested.nested_tensor(list(x)).unbind()), "a result is a nested tensor"),
    "jagged": (
        lambda x: torch.stack(torch.nested.nested_tensor(list(x), layout=torch.jagged).mul(1).unbind()),
        "a NestedTensor",
    ),
    "wrapper subclass": (lambda x: TwoTensor(x, x).mul(1).a, "a TwoTensor"),
    "plain subclass": (lambda x: x.as_subclass(Named).mul(1), "a Named"),
    "negated lazily": (lambda x: torch.complex(x, -x).conj().imag, "a tensor is conjugated lazily"),
    "cond": (
        lambda x: torch.cond(x.sum() > -1e9, lambda y: y.mul(1), lambda y: y.mul(2), (x,)),
        "the model calls cond",
    ),
}
"""What leaves every value as it is, and why the incremental engine cannot follow it; "" if it can."""

CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "autocast inside": in_bfloat16,
    "custom operator": doubled,
    "custom operator in place": doubled_in_place,
    "custom function": Doubled.apply,
    "vmap": torch.vmap(lambda x: x * 2 + x.sum()),
    "grad": torch.vmap(torch.func.grad(lambda x: (x**2).sum())),
    "masked": lambda x: masked_tensor(x, x > 0.1).to_tensor(0.0),
    "generator": with_noise,
    "dropout of a fixed seed": with_dropout,
    "flex attention": sorted_by_attention,
    "complex": lambda x: torch.fft.fft2(x).abs(),
    "conjugate": lambda x: torch.fft.fft2(x).conj().imag,
    "numpy": through_numpy,
    "list": lambda x: torch.tensor(x.tolist()) * 2,
    "expanded": lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 12, 12),
    "flipped view": lambda x: x[..., ::2, ::2].transpose(2, 3),
    "in place on input": lambda x: x.add_(1),
}


def both_engines(model: nn.Module, **options: Any) -> Trials:
    """Run both engines, require the same bits in every column, and return the trials."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        data = IMAGES, model(IMAGES.clone()).argmax(dim=1)
    full, incremental = (
        small_campaign(model, data, engine=engine, trials_per_site=16, **options).trials
        for engine in ("full", "incremental")
    )
    for name, column in full.columns.items():
        assert column.tobytes() == incremental.columns[name].tobytes(), name
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    return full


@pytest.mark.parametrize("kind", IDENTITIES)
def test_an_operator_that_changes_no_value_changes_no_trial(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    code, reason = IDENTITIES[kind]
    plain = small_campaign(SmallNet(), engine="full", trials_per_site=16).trials
    trials = both_engines(SmallNet(code))
    for name, column in plain.columns.items():
        assert column.tobytes() == trials.columns[name].tobytes(), name
    assert reason in caplog.text
    assert not reason or "takes a full pass" in caplog.text


@pytest.mark.parametrize("kind", CHANGES)
def test_engines_agree_whatever_the_model_calls(kind: str) -> None:
    both_engines(SmallNet(CHANGES[kind]))


def test_a_profilers_mark_keeps_reruns_possible() -> None:
    """The marks differ from pass to pass, the operations do not."""
    model = SmallNet(marked)
    with torch.no_grad():
        sites = rh.find_sites(model, IMAGES[:3]).reached
        engine = IncrementalEngine(model, sites, IMAGES[:8])
        assert engine.golden_pass(IMAGES[:8].flip(0), ["conv1"]).content
    assert not engine.blocked


class Site(nn.Conv2d):
    """A convolution whose output takes another form."""

    def __init__(self, form: Callable[[Tensor], Tensor]) -> None:
        super().__init__(4, 4, 3, padding=1)
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        return self.form(super().forward(x))


def with_site(form: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> SmallNet:
    model = SmallNet()
    model.site = Site(form)
    model.middle = lambda x: back(model.site(x))
    return model.eval()


INJECTABLE: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "negated lazily": (lambda x: torch.complex(x, x).conj().imag, lambda x: x),
    "negated lazily, folded": (
        lambda x: torch.complex(x, x).conj().imag.flatten(0, 1),
        lambda x: x.unflatten(0, (-1, 4)),
    ),
    "overlapping": (lambda x: x.flatten(1).as_strided((len(x), 288, 2), (576, 2, 1)), lambda x: x.view(-1, 4, 12, 12)),
    "elements shared": (
        lambda x: x.flatten(1).as_strided((len(x), 575, 2), (576, 1, 1)),
        lambda x: x.flatten(1)[:, :1024].view(-1, 4, 16, 16),
    ),
    "expanded": (lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 12, 12), lambda x: x),
    "float8": (lambda x: x.to(torch.float8_e4m3fn), lambda x: x.float()),
    "float8 of five exponent bits": (lambda x: x.to(torch.float8_e5m2), lambda x: x.float()),
}


@pytest.mark.parametrize("kind", INJECTABLE)
def test_one_fault_changes_one_element_of_an_unusual_output(kind: str) -> None:
    model = with_site(*INJECTABLE[kind])
    trials = both_engines(model, layers=["site"])
    assert (trials.before != trials.after).all()
    shape = rh.find_sites(model, IMAGES[:3]).named("site").shape
    index = (1,) * (len(shape) - kind.endswith("folded"))
    with torch.no_grad(), rh.inject(model, rh.BitFlip(layer="site", neuron=index, bit=1, batch_index=0)) as report:
        model(IMAGES[:2])
    assert report.injected == 1


UNINJECTABLE: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor], str]] = {
    "sparse": (Tensor.to_sparse, Tensor.to_dense, "a sparse_coo tensor, which is no plain torch.Tensor"),
    "mkldnn": (Tensor.to_mkldnn, Tensor.to_dense, "a _mkldnn tensor"),
    "quantised": (
        lambda x: torch.quantize_per_tensor(x, 0.05, 10, torch.quint8),
        Tensor.dequantize,
        "a quantised tensor",
    ),
    "nested": (lambda x: torch.nested.nested_tensor(list(x)), lambda x: torch.stack(x.unbind()), "a nested tensor"),
    "jagged": (
        lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged),
        lambda x: torch.stack(x.unbind()),
        "a NestedTensor",
    ),
    "masked": (lambda x: masked_tensor(x, x > 0), lambda x: x.to_tensor(0.0), "a MaskedTensor"),
    "wrapper subclass": (lambda x: TwoTensor(x, x), lambda x: x.a, "a TwoTensor"),
    "integers": (lambda x: (x * 100).int(), Tensor.float, "torch.int32"),
    "booleans": (lambda x: x > 0, Tensor.float, "torch.bool"),
    "complex": (lambda x: torch.complex(x, x), Tensor.abs, "torch.complex64"),
}


@pytest.mark.parametrize("kind", UNINJECTABLE)
def test_an_output_without_words_of_its_own_is_named_and_left_out(kind: str) -> None:
    form, back, reason = UNINJECTABLE[kind]
    model = with_site(form, back)
    found = rh.find_sites(model, IMAGES[:3])
    assert found.uninjectable["site"] == f"its output is {reason}" or reason in found.uninjectable["site"]
    assert [site.name for site in found.reached] == ["conv1", "conv2", "fc"]
    both_engines(model)


@pytest.mark.parametrize("kind", ["sparse", "mkldnn", "quantised", "nested", "masked", "wrapper subclass"])
def test_inject_refuses_an_output_without_words_of_its_own(kind: str) -> None:
    model = with_site(*UNINJECTABLE[kind][:2])
    with (
        torch.no_grad(),
        pytest.raises(rh.errors.FaultError, match=r"output of 'site' (is a .*, which keeps|to hold a floating)"),
        rh.inject(model, rh.BitFlip(layer="site", neuron=(0, 0, 0), bit=3)),
    ):
        model(IMAGES[:2])


def test_a_model_that_fails_under_a_recorder_takes_full_passes(caplog: pytest.LogCaptureFixture) -> None:
    """The full passes need no dispatch mode."""

    def middle(x: Tensor) -> Tensor:
        if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
            raise KeyError("a mode")
        return x

    plain = small_campaign(SmallNet(), engine="full", trials_per_site=16).trials
    trials = both_engines(SmallNet(middle))
    assert trials.columns["delta_loss"].tobytes() == plain.columns["delta_loss"].tobytes()
    assert "every site takes a full pass of the model: its operations cannot be recorded" in caplog.text


def test_a_recorder_that_fails_later_takes_full_passes_from_then_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = small_campaign(SmallNet(), engine="full").trials
    passes = IncrementalEngine.golden_pass
    calls = 0

    def golden_pass(engine: IncrementalEngine, images: Tensor, group: list[str]) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            engine._model.middle = lambda x: torch.vmap(no_mode)(x)
        return passes(engine, images, group)

    def no_mode(x: Tensor) -> Tensor:
        if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
            raise TypeError("no mode")
        return x

    monkeypatch.setattr(IncrementalEngine, "golden_pass", golden_pass)
    with caplog.at_level(logging.WARNING):
        trials = small_campaign(SmallNet(), engine="incremental").trials
    for name, column in plain.columns.items():
        assert column.tobytes() == trials.columns[name].tobytes(), name
    assert "its operations cannot be recorded" in caplog.text


def test_an_error_of_the_model_itself_is_raised() -> None:
    def middle(x: Tensor) -> Tensor:
        raise KeyError("missing")

    with pytest.raises(ForwardError, match="missing"):
        small_campaign(SmallNet(middle))


def test_a_model_that_draws_random_numbers_is_refused() -> None:
    with pytest.raises(InjectionError, match="different logits on the same images"):
        small_campaign(SmallNet(lambda x: F.dropout(x, 0.5, training=True)))


@pytest.mark.parametrize("gradients", [True, False])
def test_a_weight_fault_acts_inside_a_surrounding_autocast(gradients: bool) -> None:
    """Autocast keeps converted copies of weights that require gradients until its block ends."""
    model, images = nn.Sequential(nn.Linear(4, 3)), torch.randn(2, 4)
    fault = rh.WeightBitFlip(layer="0", index=(0, 0), bit=30)
    with torch.set_grad_enabled(gradients), torch.autocast("cpu", dtype=torch.bfloat16):
        golden = model(images)
        with rh.inject(model, fault):
            assert not torch.equal(model(images), golden)
        assert torch.equal(model(images), golden)
