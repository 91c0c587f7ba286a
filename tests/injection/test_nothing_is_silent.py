"""Ways in which a fault could be injected into nothing, and what broke for users of other tools."""

import contextlib
import shutil
import sys
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import resilient_heads as rh
from helpers.injected import run_with_trials, single_flips
from resilient_heads.errors import FaultError, InjectionError
from resilient_heads.incremental.recording.words import words
from resilient_heads.injection.faults.fault_model import FaultModel

WEIGHT = rh.WeightBitFlip(layer="2", index=(1, 2), bit=30)
OUTPUT = rh.BitFlip(layer="2", neuron=(1,), bit=30)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs g++")


def mlp() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)).eval()


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.fixture
def quiet_compiler() -> Iterator[None]:
    """Let the compiler warn about itself, and forget what it compiled."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
        torch.compiler.reset()


# --- hooks after compile --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@torch.no_grad()
def test_a_hook_set_after_compiling(backend: str, quiet_compiler: None) -> None:
    model, x = mlp(), torch.randn(3, 5)
    compiled = torch.compile(model, backend=backend)
    golden = found = compiled(x)
    message = ""
    try:
        with rh.inject(model, OUTPUT):
            found = compiled(x)
    except InjectionError as error:
        message = str(error)
    # If this version of torch ignores hooks that are set later, inject() must raise.
    assert torch.equal(found, golden) == ("was compiled before the block" in message)
    assert hooks(model) == 0


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@torch.no_grad()
def test_compiling_inside_the_block_works(backend: str, quiet_compiler: None) -> None:
    model, x = mlp(), torch.randn(3, 5)
    golden = model(x)
    with rh.inject(model, WEIGHT):
        expected = model(x)
        assert torch.equal(torch.compile(model, backend=backend)(x), expected)
    assert not torch.equal(expected, golden)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@torch.no_grad()
def test_weights_of_a_compiled_model(backend: str, quiet_compiler: None) -> None:
    model, x = mlp(), torch.randn(3, 5)
    compiled = torch.compile(model, backend=backend)
    golden = compiled(x)
    with rh.inject(model, WEIGHT):
        assert not torch.equal(compiled(x), golden)
    assert torch.equal(compiled(x), golden)


def test_torchscript_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for scripted in (torch.jit.script(mlp()), torch.jit.trace(mlp(), torch.ones(2, 5))):
            with pytest.raises(FaultError, match="is TorchScript"), rh.inject(scripted, OUTPUT):
                pytest.fail("the body must not run")


# --- frozen graphs --------------------------------------------------------------------------------------------------


@pytest.fixture
def _freezing_forgotten() -> Iterator[None]:
    """Leave no sign of freezing: with one, each later block searches all objects of the process for frozen graphs."""
    yield
    torch.compiler.reset()
    sys.modules.pop("torch._inductor.freezing", None)


@pytest.mark.slow
@needs_compiler
@pytest.mark.usefixtures("_freezing_forgotten")
@torch.no_grad()
def test_weights_of_a_frozen_graph(quiet_compiler: None) -> None:
    import torch._inductor.config as inductor

    model, x = mlp(), torch.randn(3, 5)
    before = {name: words(p.data).clone() for name, p in model.named_parameters()}
    with inductor.patch(freezing=True):
        compiled = torch.compile(model)
        compiled(x)
    with pytest.raises(InjectionError, match="compiled with freezing is alive"), rh.inject(model, WEIGHT):
        pytest.fail("the body must not run")
    assert all(torch.equal(words(p.data), before[name]) for name, p in model.named_parameters())
    del compiled


# --- tensors that are views of others -------------------------------------------------------------------------------


@pytest.fixture
def mesh() -> Iterator[object]:
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    from torch.distributed.device_mesh import init_device_mesh

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
        yield init_device_mesh("cpu", (1,))
        distributed.destroy_process_group()


def test_distributed_tensors(mesh: object) -> None:
    from torch.distributed.tensor import DTensor, Replicate, distribute_module

    model = nn.Sequential(nn.Linear(4, 3), nn.Identity())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distribute_module(model, mesh)  # type: ignore[arg-type]
        x = DTensor.from_local(torch.randn(2, 4), mesh, [Replicate()])  # type: ignore[arg-type]
        golden = model(x).to_local()
        weight = rh.WeightBitFlip(layer="0", index=(1, 2), bit=30)
        with (
            pytest.raises(FaultError, match=r"is a DTensor.*Name one of them: weight\._local_tensor"),
            rh.inject(model, weight),
        ):
            pytest.fail("the body must not run")
        with pytest.raises(FaultError, match="is a DTensor, which keeps its values in other tensors"):  # noqa: SIM117
            with rh.inject(model, rh.BitFlip(layer="1", neuron=(1,), bit=30)):
                model(x)
        local = rh.WeightBitFlip(layer="0", index=(1, 2), bit=31, parameter="weight._local_tensor")
        with rh.inject(model, local):
            found = model(x).to_local()
        assert (found != golden).nonzero()[:, 1].unique().tolist() == [1]
        assert torch.equal(model(x).to_local(), golden)


# --- channels last --------------------------------------------------------------------------------------------------

KINDS = {
    "flip": FaultModel(),
    "several": FaultModel(elements=rh.faults.RandomElements(count=4)),
    "burst": FaultModel(elements=rh.faults.RandomElements(count=4, adjacent=True)),
    "stuck": FaultModel(elements=rh.faults.AllElements(), effect=rh.faults.StuckAt(value=1, bits=(31,))),
    "maximum": FaultModel(effect=rh.faults.LayerMaximum()),
    "block": FaultModel(format=rh.formats.BlockFloat(block_size=4), shared=True),
}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_channels_last_is_struck_where_contiguous_is(kind: str) -> None:
    model = nn.Sequential(nn.Identity(), nn.Identity())
    x, chosen = torch.randn(3, 4, 5, 6), KINDS[kind]
    last = x.to(memory_format=torch.channels_last)
    draws = chosen.draw(1, "0", np.arange(3), neurons=120, word_bits=32)
    fault = rh.Fault(
        layer="0", elements=chosen.elements, effect=chosen.effect, format=chosen.format, shared=chosen.shared, seed=1
    )
    _, expected = run_with_trials(model, x, "0", draws, fault_model=chosen)
    assert not torch.equal(words(expected), words(x))
    _, found = run_with_trials(model, last, "0", draws, fault_model=chosen)
    assert torch.equal(words(found), words(expected))
    assert found.stride() == last.stride()
    with rh.inject(model, fault):
        again = model(last)
    assert torch.equal(words(again), words(expected))
    assert again.stride() == last.stride()
    with rh.inject(
        model, rh.Fault(layer="1", tensor=rh.faults.Input(), elements=rh.faults.IndexedElements(indices=(1, 2, 3)))
    ):
        assert model(last).stride() == last.stride()
    conv = nn.Sequential(nn.Conv2d(3, 4, 3)).to(memory_format=torch.channels_last)
    stored = rh.Fault(layer="0", tensor=rh.faults.StoredTensor(), elements=chosen.elements, effect=chosen.effect)
    kept = words(conv[0].weight.data).clone()
    with rh.inject(conv, stored) as report:
        assert int((words(conv[0].weight.data) != kept).sum()) == report.injected - report.without_effect
    assert torch.equal(words(conv[0].weight.data), kept)


# --- the dtype that the tensor really has ---------------------------------------------------------------------------


@torch.no_grad()
def test_autocast_strikes_the_word_that_is_there() -> None:
    model, x = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 4)), torch.randn(3, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        golden = model(x)
        with rh.inject(model, rh.Fault(layer="1", effect=rh.faults.Flip(count=16))) as report:
            found = model(x)
        assert found.dtype == torch.bfloat16
        assert (words(found) ^ words(golden)).count_nonzero() == report.injected == 3
        assert set((words(found) ^ words(golden)).flatten().tolist()) == {0, -1}
        with pytest.raises(FaultError, match="count=17 different bits were asked for, but a word has 16"):  # noqa: SIM117
            with rh.inject(model, rh.Fault(layer="1", effect=rh.faults.Flip(count=17))):
                model(x)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16], ids=str)
def test_narrow_outputs(dtype: torch.dtype) -> None:
    class Narrow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.to(dtype)

    model, x = nn.Sequential(Narrow()), torch.randn(4, 6)
    golden = model(x)
    bits = torch.finfo(dtype).bits
    for bit in range(bits):
        with rh.inject(model, rh.BitFlip(layer="0", neuron=(2,), bit=bit)):
            change = words(model(x)) ^ words(golden)
        assert change[:, 2].tolist() == [(1 << bit) - ((1 << bits) if bit == bits - 1 else 0)] * 4
        assert int(change.count_nonzero()) == 4
        _, limited = run_with_trials(model, x, "0", single_flips([2] * 4, [bit] * 4), range_limit=1.0)
        assert limited[:, 2].float().abs().max() <= 1


def test_quantised_by_torchao() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization = pytest.importorskip("torchao.quantization", exc_type=ImportError)
        model, x = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(2, 32)
        quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
        golden = model(x)
        kept = model[2].weight.qdata.clone()
        with pytest.raises(FaultError, match=r"Name one of them: weight\.qdata, weight\.scale"):  # noqa: SIM117
            with rh.inject(model, rh.Fault(layer="2", tensor=rh.faults.StoredTensor())):
                pytest.fail("the body must not run")
        flip = rh.WeightBitFlip(layer="2", index=(3, 5), bit=7, parameter="weight.qdata")
        with rh.inject(model, flip):
            change = model[2].weight.qdata ^ kept
            assert change.nonzero().tolist() == [[3, 5]]
            assert change[3, 5].item() == -128
            found = model(x)
        assert (found != golden).any(dim=0).tolist() == [False, False, False, True]
        rate = rh.Fault(
            layer="2", tensor=rh.faults.StoredTensor(name="weight.qdata"), elements=rh.faults.ErrorRate(rate=0.1)
        )
        with rh.inject(model, rate) as report:
            assert int((model[2].weight.qdata != kept).sum()) == report.injected > 10
        everything = rh.Fault(
            layer="*", tensor=rh.faults.StoredTensor(name=None), elements=rh.faults.ErrorRate(rate=0.01)
        )
        with rh.inject(model, everything) as report:
            assert report.injected > 10
        assert torch.equal(model(x), golden)
        assert torch.equal(model[2].weight.qdata, kept)


# --- memory that cannot be written ----------------------------------------------------------------------------------


def test_weights_that_share_memory_in_part() -> None:
    """A view of another parameter: two flips of one bit of one address cancel, by any of its names."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False))
    model[1].weight = nn.Parameter(model[0].weight.data[2:])
    kept = words(model[0].weight.data).clone()
    faults = [
        rh.WeightBitFlip(layer="0", index=(3, 1), bit=30),
        rh.WeightBitFlip(layer="1", index=(1, 1), bit=30),
    ]
    with pytest.raises(InjectionError, match="another fault undoes it"), rh.inject(model, faults):
        pytest.fail("the body must not run")
    with rh.inject(model, [faults[0], rh.WeightBitFlip(layer="1", index=(1, 1), bit=29)]):
        assert (words(model[0].weight.data) ^ kept)[3, 1].item() == 1 << 30 | 1 << 29
    assert torch.equal(words(model[0].weight.data), kept)


def test_lazy_and_meta_parameters() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lazy = nn.Sequential(nn.LazyLinear(3))
    with (
        pytest.raises(FaultError, match="has no size yet; run the model once"),
        rh.inject(lazy, rh.Fault(layer="0", tensor=rh.faults.StoredTensor())),
    ):
        pytest.fail("the body must not run")
    hollow = nn.Sequential(nn.Linear(3, 3, device="meta"))
    with (
        pytest.raises(FaultError, match="on the meta device"),
        rh.inject(hollow, rh.Fault(layer="0", tensor=rh.faults.StoredTensor())),
    ):
        pytest.fail("the body must not run")


def test_a_complex_or_boolean_tensor() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    model[0].register_buffer("mask", torch.ones(3, dtype=torch.bool))
    with (
        pytest.raises(FaultError, match=r"Cannot flip bits of torch\.bool"),
        rh.inject(model, rh.Fault(layer="0", tensor=rh.faults.StoredTensor(name="mask"))),
    ):
        pytest.fail("the body must not run")


def test_a_weight_that_is_computed_is_struck_where_it_is_stored() -> None:
    model, x = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))), torch.randn(2, 4)
    golden = model(x)
    with (
        pytest.raises(FaultError, match="'0' has no parameter 'weight'; it has: bias"),
        rh.inject(model, rh.Fault(layer="0", tensor=rh.faults.StoredTensor())),
    ):
        pytest.fail("the body must not run")
    stored = rh.faults.StoredTensor(name="original1")
    with rh.inject(model, rh.Fault(layer="0.parametrizations.weight", tensor=stored, effect=rh.faults.Negate())):
        assert not torch.equal(model(x), golden)
    assert torch.equal(model(x), golden)


# --- what broke elsewhere -------------------------------------------------------------------------------------------


def test_a_second_call_after_setting_a_value() -> None:
    model, x = mlp(), torch.randn(3, 5)
    fault = rh.Fault(
        layer="2", elements=rh.faults.IndexedElements(indices=(1,)), effect=rh.faults.SetValue(value=10_000.0)
    )
    with rh.inject(model, fault):
        assert [model(x)[:, 1].tolist() for _ in range(3)] == [[10_000.0] * 3] * 3
        assert model(x[:1])[:, 1].tolist() == [10_000.0]


def test_a_value_beyond_the_range() -> None:
    x = torch.ones(1, 5)
    half = mlp().half()
    fault = rh.Fault(layer="2", elements=rh.faults.IndexedElements(indices=(1,)), effect=rh.faults.SetValue(value=1e9))
    with rh.inject(half, fault):
        assert half(x.half())[0, 1].item() == float("inf")
    counter = nn.Sequential(nn.BatchNorm1d(2))
    stored = rh.Fault(
        layer="0",
        tensor=rh.faults.StoredTensor(name="num_batches_tracked"),
        elements=rh.faults.AllElements(),
        effect=rh.faults.SetValue(value=0.5),
    )
    with pytest.raises(FaultError, match=r"torch\.int64 has no value 0\.5"), rh.inject(counter, stored):
        pytest.fail("the body must not run")


def test_bfloat16_models_take_every_kind_of_fault() -> None:
    model, x = mlp().bfloat16(), torch.randn(3, 5, dtype=torch.bfloat16)
    for chosen in KINDS.values():
        if isinstance(chosen.effect, rh.faults.StuckAt):
            continue
        fault = rh.Fault(
            layer="2", elements=chosen.elements, effect=chosen.effect, format=chosen.format, shared=chosen.shared
        )
        with rh.inject(model, fault) as report:
            assert model(x).dtype == torch.bfloat16
        assert report.injected


def test_a_layer_whose_batch_dimension_is_one() -> None:
    """Swin computes its position bias once for all images: a fault in row 3 of it must raise an error."""

    class Bias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.fc = nn.Linear(2, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) + self.table(torch.ones(1, 2))

    model, x = Bias(), torch.randn(5, 4)
    golden = model(x)
    with rh.inject(model, rh.Fault(layer="table", tensor=rh.faults.Output(batch_dim=None))) as report:
        assert (model(x) != golden).any(dim=1).all()
    assert report.injected == 1
    with (
        pytest.raises(FaultError, match="batch_index 3 does not exist in a batch of 1"),
        rh.inject(model, rh.Fault(layer="table", tensor=rh.faults.Output(batch_index=3))),
    ):
        model(x)
    with pytest.raises(FaultError, match="Expected draws for 1 images of 'table', found draws for 5"):
        run_with_trials(model, x, "table", single_flips([0] * 5, [0] * 5))


def test_weights_and_neurons_at_once_during_training() -> None:
    model, x = mlp().train(), torch.randn(6, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = words(model[2].weight.data).clone()
    with rh.inject(model, rh.Fault(layer="0", effect=rh.faults.SetValue())):
        model(x).sum().backward()
        optimizer.step()
    assert not torch.equal(words(model[2].weight.data), before)  # the step stays, only the fault is gone
    assert hooks(model) == 0


def test_a_struck_value_has_no_gradient() -> None:
    model = nn.Sequential(nn.Identity(), nn.Identity())
    x = torch.ones(2, 3, requires_grad=True)
    with rh.inject(
        model,
        rh.Fault(layer="0", elements=rh.faults.IndexedElements(indices=(1,)), effect=rh.faults.SetValue(value=5.0)),
    ):
        model(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[1.0, 0.0, 1.0]] * 2


def test_inference_mode_and_deep_copies() -> None:
    model, x = mlp(), torch.randn(2, 5)
    with torch.inference_mode(), rh.inject(model, [WEIGHT, OUTPUT]):
        model(x)
    with contextlib.suppress(InjectionError), rh.inject(model, OUTPUT):
        pass
    assert hooks(model) == 0
