"""Protected heads keep their fault-free bits, and no flip before the logits changes a class."""

import copy
import importlib
import io
import pickle
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

import resilient_heads as rh
from resilient_heads.campaign.trials.outcomes import Outcome
from resilient_heads.heads.protection import algebra
from resilient_heads.incremental.recording.words import words

CHOICES = [
    rh.Protection(bounds=True),
    rh.Protection(checksum=True),
    rh.Protection(median=True),
    rh.Protection(bounds=True, checksum=True),
    rh.Protection(bounds=True, median=True),
]
KINDS = ["plain", "linear", "cosine", "fused linear", "fused cosine"]


def build(kind: str, sizes: tuple[int, int, int] = (24, 16, 5), *, conv: bool = False) -> nn.Sequential:
    """Return a model that is one head."""
    features, dim, classes = sizes
    if kind == "plain":
        return nn.Sequential(nn.Conv2d(features, classes, 1) if conv else nn.Linear(features, classes)).eval()
    head = rh.TextGuidedHead(features, (classes, dim), normalize="cosine" in kind, conv=conv)
    return nn.Sequential(head.fused() if "fused" in kind else head).eval()


def protect(model: nn.Module, choice: rh.Protection) -> nn.Module:
    return rh.protect_(model, **asdict(choice))


def same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(words(one.contiguous()), words(other.contiguous()))


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_fault_free_logits_keep_every_bit_and_nothing_is_detected(
    kind: str, choice: rh.Protection, dtype: torch.dtype
) -> None:
    for conv, sizes, batch in ((False, (24, 16, 5), 7), (False, (513, 96, 33), 16), (True, (24, 16, 5), 3)):
        model = build(kind, sizes, conv=conv).to(dtype)
        x = torch.randn(batch, sizes[0]).relu() * 10 ** torch.randn(batch, 1)
        x = (x[:, :, None, None] * torch.rand(2, 3) if conv else x).to(dtype)
        with torch.no_grad():
            before = model(x)
            protect(model, choice)
            with rh.ProtectionMonitor(model) as monitor:
                after = model(x)
        assert same_bits(before, after)
        count = monitor.counts["0"]
        assert (count.restricted_values, count.checksum_alarms, count.outvoted_rows) == (0, 0, 0)
        assert count.rows == before.numel() // sizes[2]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_no_input_raises_a_false_alarm_of_bounds_or_changes_a_bit(
    kind: str, choice: rh.Protection, data: st.DataObject
) -> None:
    model = build(kind)
    seed = data.draw(st.integers(0, 2**31))
    exponents = data.draw(st.lists(st.integers(-44, 38), min_size=4, max_size=4))
    special = data.draw(st.sampled_from([0.0, -0.0, float("inf"), float("-inf"), float("nan"), 3.4e38, 1e-45]))
    x = torch.randn(4, 24, generator=torch.Generator().manual_seed(seed)) * torch.tensor(
        [[10.0**exponent] for exponent in exponents], dtype=torch.float64
    )
    x = x.float()
    x[0, data.draw(st.integers(0, 23))] = special
    with torch.no_grad():
        before = model(x)
        protect(model, choice)
        with rh.ProtectionMonitor(model) as monitor:
            after = model(x)
    nan = before.isnan()
    assert torch.equal(nan, after.isnan())
    assert torch.equal(words(before)[~nan], words(after)[~nan])
    assert (monitor.counts["0"].restricted_values, monitor.counts["0"].outvoted_rows) == (0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_sign_of_zero_stays_where_values_leave_the_format(kind: str) -> None:
    for dtype, scale in ((torch.float32, 1e30), (torch.float32, 3e38), (torch.float16, 3e4), (torch.float16, 1.0)):
        model = build(kind, (24, 16, 10))
        with torch.no_grad():  # rows of zeros and of large values, as in a head that was pruned or badly trained
            for weight in (p for p in model.parameters() if p.ndim == 2):
                weight[0], weight[-1] = 0, weight[-1] * 10
        model.to(dtype)
        x = (torch.randn(5, 24, dtype=torch.float64) * scale).to(dtype)
        with torch.no_grad():
            before = model(x)
            for choice in CHOICES:
                protect(model, choice)
                with rh.ProtectionMonitor(model) as monitor:
                    after = model(x)
                nan = before.isnan()
                assert torch.equal(nan, after.isnan())
                assert torch.equal(words(before)[~nan], words(after)[~nan]), (kind, dtype, scale, str(choice))
                assert monitor.counts["0"].outvoted_rows == 0


def before_the_logits(model: nn.Module, x: Tensor, choice: rh.Protection) -> rh.campaign.ExhaustiveResult:
    """Inject every flip into every tensor of a protected head except its logits."""
    protect(model, choice)
    labels = model(x).argmax(1)
    result = rh.run_exhaustive(model, (x, labels), progress=False)
    tensors = tuple(tensor for tensor in result.tensors if tensor.site.name != "0")
    return type(result)(tensors, result.images, result.uninjectable)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_median_masks_every_fault_in_narrow_formats(kind: str, dtype: torch.dtype) -> None:
    model = build(kind, (6, 5, 8)).to(dtype)
    result = before_the_logits(model, torch.randn(3, 6).to(dtype), rh.Protection(median=True))
    assert result.count(Outcome.MASKED) == result.faults > 1000


def test_the_median_masks_every_fault_near_the_end_of_the_format() -> None:
    layer = nn.Linear(4, 3)
    with torch.no_grad():  # twice these logits would be infinite
        layer.weight.copy_(torch.tensor([[10000.0] * 4, [9000.0] * 4, [8000.0] * 4]))
        layer.bias.zero_()
    model = nn.Sequential(layer).half().eval()
    x = torch.ones(2, 4).half()
    result = before_the_logits(model, x, rh.Protection(median=True))
    assert result.count(Outcome.MASKED) == result.faults
    with rh.ProtectionMonitor(model) as monitor:
        model(x)
    assert monitor.counts["0"].outvoted_rows == 0


def test_a_dominant_class_hides_faults_from_the_checksum_but_not_from_the_median() -> None:
    for bias, passed in ((-1e3, False), (-1e9, True)):
        torch.manual_seed(0)
        layer = nn.Linear(16, 10)
        with torch.no_grad():
            layer.bias[3] = bias
        model, x = nn.Sequential(layer).eval(), torch.randn(8, 16)
        checked = before_the_logits(model, x, rh.Protection(checksum=True))
        assert (50 < checked.count(Outcome.SDC) < 200) == passed  # docs/protection.md says so
        assert passed or checked.count(Outcome.SDC) == 0
        voted = before_the_logits(model, x, rh.Protection(median=True))
        assert voted.count(Outcome.MASKED) == voted.faults


@pytest.mark.parametrize("kind", ["cosine", "fused cosine"])
def test_a_wrong_scale_is_detected_even_if_all_sums_are_zero(kind: str) -> None:
    head = rh.TextGuidedHead(6, (4, 5)).eval()
    with torch.no_grad():
        head.projection.weight.copy_(torch.tensor([[1.0], [-1.0], [2.0], [-2.0]]) * torch.randn(5))
    model = nn.Sequential(head.fused() if "fused" in kind else head).eval()
    for choice in (rh.Protection(checksum=True), rh.Protection(median=True)):
        result = before_the_logits(model, torch.randn(3, 6), choice)
        scales = [tensor for tensor in result.tensors if "scale" in tensor.site.name]
        assert len(scales) == (7 if choice.checksum else 3)
        for tensor in scales:
            assert tensor.count(Outcome.MASKED) == tensor.faults, tensor.site.name


@pytest.mark.parametrize("kind", KINDS)
def test_views_and_tokens_keep_every_bit(kind: str) -> None:
    model = build(kind)
    tokens = torch.randn(3, 7, 24)
    with torch.no_grad():
        before = [model(tokens), model(tokens[:, 2]), model(tokens.transpose(0, 1))]
        for choice in CHOICES:
            protect(model, choice)
            after = [model(tokens), model(tokens[:, 2]), model(tokens.transpose(0, 1))]
            assert all(same_bits(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("conv", [False, True], ids=["linear", "conv"])
@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_no_fault_before_the_logits_changes_a_class(kind: str, choice: rh.Protection, conv: bool) -> None:
    if conv and kind not in ("plain", "cosine"):
        pytest.skip("the same code as cosine")
    model = build(kind, (6, 5, 3), conv=conv)
    x = torch.randn(4, 6, 1, 1) if conv else torch.randn(4, 6)
    whole = nn.Sequential(*model, nn.Flatten()) if conv else model
    labels = whole(x).argmax(1)
    unprotected = rh.run_exhaustive(whole, (x, labels), progress=False)
    protect(whole, choice)
    result = rh.run_exhaustive(whole, (x, labels), progress=False)
    assert not {name: why for name, why in result.uninjectable.items() if "guard" in name}
    assert {tensor.site.name for tensor in result.tensors} == {f"0.{name}".rstrip(".") for name in whole[0].fault_sites}
    before = [tensor for tensor in result.tensors if tensor.site.name != "0"]
    assert result["0"].count(Outcome.SDC) > 0
    assert unprotected.count(Outcome.SDC) > 0
    assert len(before) >= 3
    if choice.checksum or choice.median:
        assert sum(tensor.count(Outcome.SDC) + tensor.count(Outcome.DUE) for tensor in before) == 0
    if choice.median:
        assert sum(tensor.count(Outcome.MASKED) for tensor in before) == sum(tensor.faults for tensor in before)


def test_bounds_detect_values_out_of_range_only() -> None:
    model = build("cosine")
    x = torch.randn(8, 24)
    rh.protect_(model, bounds=True)
    for bit, expected in ((30, 8), (3, 0)):
        with rh.ProtectionMonitor(model) as monitor, torch.no_grad():
            flip = rh.BitFlip(layer="0.latent", neuron=(2,), bit=bit)
            with rh.inject(model, flip):
                logits = model(x)
        assert bool(logits.isfinite().all())
        assert (monitor.counts["0"].restricted_values > 0) == (expected > 0)


def test_a_checksum_raises_an_alarm_for_every_change_above_rounding() -> None:
    model = build("cosine", (256, 128, 20))
    x = torch.randn(32, 256)
    golden = model(x)
    rh.protect_(model, checksum=True)
    for layer in ("0.latent", "0.guard.first.unit", "0.projection", "0.guard.first.logits"):
        for change in (1e-2, -1.0, float("nan"), float("inf"), -1e38):

            def add(module: nn.Module, args: object, output: Tensor, change: float = change) -> Tensor:
                output = output.clone()
                output[:, 3] += change
                return output

            handle = model.get_submodule(layer).register_forward_hook(add)
            with rh.ProtectionMonitor(model) as monitor, torch.no_grad():
                logits = model(x)
            handle.remove()
            assert monitor.counts["0"].checksum_alarms == 32, (layer, change)
            assert torch.equal(logits, golden)


def test_rounding_raises_no_alarm_in_large_heads() -> None:
    for kind in KINDS:
        model = build(kind, (2048, 512, 300))
        rh.protect_(model, checksum=True)
        with rh.ProtectionMonitor(model) as monitor, torch.no_grad():
            for scale in (1e-3, 1.0, 1e3):
                model(torch.randn(64, 2048).relu() * scale)
        assert monitor.counts["0"].checksum_alarms == 0


def test_counts_add_up_until_they_are_reset() -> None:
    model = build("cosine")
    rh.protect_(model, median=True)
    x = torch.randn(6, 24)
    monitor = rh.ProtectionMonitor(model)
    with torch.no_grad():
        with rh.inject(model, rh.BitFlip(layer="0.guard.second.latent", neuron=(1,), bit=30)):
            model(x)
        assert (monitor.counts["0"].rows, monitor.counts["0"].outvoted_rows) == (6, 6)
        model(x)
        assert (monitor.counts["0"].rows, monitor.counts["0"].outvoted_rows) == (12, 6)
        monitor.reset()
        model(x)
        assert (monitor.counts["0"].rows, monitor.counts["0"].outvoted_rows) == (6, 0)
        monitor.close()
        model(x)
        assert monitor.counts["0"].rows == 6
    assert not any(module._forward_hooks for module in model.modules())


@given(
    value=st.floats(width=32, allow_nan=False),
    fault=st.floats(width=32),
    place=st.integers(0, 2),
)
def test_two_equal_values_outvote_the_third(value: float, fault: float, place: int) -> None:
    three = [torch.tensor([value])] * 3
    three[place] = torch.tensor([fault])
    assert torch.equal(algebra.median_of_three(*three), torch.tensor([value]))


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=3, max_size=3))
def test_the_median_of_three(values: list[float]) -> None:
    three = [torch.tensor([value]) for value in values]
    assert float(algebra.median_of_three(*three)) == sorted(values)[1]


def test_protection_keeps_parameters_state_dict_and_mode() -> None:
    for kind in KINDS:
        model = build(kind)
        stock = copy.deepcopy(model)
        parameters = list(model.parameters())
        for choice in CHOICES:
            protect(model, choice)
            assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
            assert list(model.state_dict()) == list(stock.state_dict())
            stock.load_state_dict(model.state_dict(), strict=True)
        rh.unprotect_(model)
        assert type(model[0]) is type(stock[0])
        assert not model.training


@pytest.mark.parametrize("conv", [False, True], ids=["linear", "conv"])
def test_a_plain_layer_keeps_its_hooks_and_attributes(conv: bool) -> None:
    model = build("plain", conv=conv)
    layer, calls = model[0], []
    layer.note = "kept"
    handles = [
        layer.register_forward_hook(lambda *_: calls.append("forward")),
        layer.register_forward_pre_hook(lambda *_: calls.append("before")),
        layer.register_full_backward_hook(lambda *_: calls.append("backward")),
        layer.register_load_state_dict_pre_hook(lambda *_: calls.append("load")),
        layer.register_state_dict_pre_hook(lambda *_: calls.append("state")),
    ]
    x = torch.randn(2, 24, 1, 1, requires_grad=True) if conv else torch.randn(2, 24, requires_grad=True)

    def use() -> list[str]:
        calls.clear()
        model(x).sum().backward()
        model.load_state_dict(model.state_dict())
        return sorted(calls)

    expected = use()
    assert len(expected) == 5
    rh.protect_(model, checksum=True)
    assert use() == expected
    assert model[0] is layer
    assert layer.note == "kept"
    late = layer.register_forward_hook(lambda *_: calls.append("late"))
    rh.unprotect_(model)
    assert use() == sorted([*expected, "late"])
    assert type(layer) is (nn.Conv2d if conv else nn.Linear)
    assert set(vars(layer)) == {*vars(build("plain", conv=conv)[0]), "note"}
    for handle in [*handles, late]:
        handle.remove()
    assert use() == []


def test_a_protected_layer_can_be_protected_again_by_its_name() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.ReLU(), nn.Linear(6, 3))).eval()
    for name in ("1.1", "1", ["1.1"]):
        rh.protect_(model, checksum=True, classifier=name)
        rh.protect_(model, median=True, classifier=name)
        assert model[1][1].protection == rh.Protection(median=True)
    with pytest.raises(rh.errors.ModelError, match="leave classifier= out"):
        rh.protect_(model, bounds=True, classifier="0")
    assert model[1][1].protection == rh.Protection(median=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_pickled_and_copied_while_faults_are_counted(kind: str) -> None:
    model = build(kind)
    rh.protect_(model, bounds=True, checksum=True)
    x = torch.randn(2, 24)
    with rh.ProtectionMonitor(model) as monitor:
        golden = model(x)
        for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
            assert same_bits(other(x), golden)
        assert monitor.counts["0"].rows == 2


def test_training_computes_once_and_without_protection() -> None:
    model = build("cosine")
    x = torch.randn(4, 24)
    expected = copy.deepcopy(model).train()
    rh.protect_(model, median=True)
    model.train()
    for each in (model, expected):
        each(x).square().sum().backward()
    assert all(
        torch.equal(one.grad, other.grad)
        for one, other in zip(model.parameters(), expected.parameters(), strict=True)
        if one.grad is not None and other.grad is not None
    )
    with rh.ProtectionMonitor(model) as monitor:
        model(x)
    assert monitor.counts["0"].rows == 0


def test_gradients_of_a_protected_head_in_evaluation_mode() -> None:
    for kind in KINDS:
        model = build(kind).double()
        x = torch.randn(3, 24, dtype=torch.float64, requires_grad=True)
        (expected,) = torch.autograd.grad(model(x).square().sum(), x)
        for choice in CHOICES:
            protect(model, choice)
            (found,) = torch.autograd.grad(model(x).square().sum(), x)
            torch.testing.assert_close(found, expected)


MATRIX_PRODUCTS = ("mm", "linear", "convolution", "conv2d")


def products(model: nn.Module, x: Tensor, wanted: tuple[str, ...] = MATRIX_PRODUCTS) -> int:
    """Return the number of operations in the exported graph after equal computations are merged."""
    from torch._functorch.compile_utils import fx_graph_cse

    graph = torch.export.export(model, (x,)).run_decompositions().module().graph
    return sum(
        node.op == "call_function" and any(w in str(node.target).removeprefix("aten.expand") for w in wanted)
        for node in fx_graph_cse(graph).nodes
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compilers_keep_the_copies(kind: str) -> None:
    model = build(kind)
    x = torch.randn(3, 24)
    one = products(model, x)
    for choice, factor in ((CHOICES[1], 2), (CHOICES[2], 3)):
        protect(model, choice)
        assert products(model, x) == factor * one
        if "cosine" in kind:  # the scales of two computations, and the one that the check compares with; or of three
            assert products(model, x, ("exp",)) == 3


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of torch.jit
@pytest.mark.parametrize("choice", [CHOICES[1], *(pytest.param(each, marks=pytest.mark.slow) for each in CHOICES[2:])])
def test_export_with_any_batch_compile_trace_and_copies(choice: rh.Protection) -> None:
    model = build("cosine")
    protect(model, choice)
    x = torch.randn(5, 24)
    with torch.no_grad():
        golden = model(x)
        batch = torch.export.Dim("batch", min=2)
        exported = torch.export.export(model, (torch.randn(3, 24),), dynamic_shapes=({0: batch},)).module()
        torch.testing.assert_close(exported(x), golden, rtol=1e-6, atol=1e-6)
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), golden, rtol=1e-6, atol=1e-6)
        traced = torch.jit.trace(model, torch.randn(2, 24))
        torch.testing.assert_close(traced(x), golden, rtol=1e-6, atol=1e-6)
        assert same_bits(copy.deepcopy(model)(x), golden)
        assert same_bits(pickle.loads(pickle.dumps(model))(x), golden)
        buffer = io.BytesIO()
        torch.save(model, buffer)
        assert same_bits(torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)(x), golden)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the exporter
@pytest.mark.parametrize(("kind", "choice"), [("linear", CHOICES[1]), ("fused cosine", CHOICES[4])])
def test_onnx_runtime_gives_the_logits_and_keeps_the_copies(kind: str, choice: rh.Protection, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    model = build(kind)
    protect(model, choice)
    x = torch.randn(6, 24)
    file, optimized = str(tmp_path / "head.onnx"), str(tmp_path / "optimized.onnx")
    batch = torch.export.Dim("batch", min=1)
    torch.onnx.export(model, (x[:3],), dynamo=True, dynamic_shapes=({0: batch},), verbose=False).save(file)
    options = runtime.SessionOptions()
    options.optimized_model_filepath = optimized
    session = runtime.InferenceSession(file, options)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.tensor(found), model(x).detach(), rtol=1e-5, atol=1e-5)
    kinds = [node.op_type for node in onnx.load(optimized).graph.node]
    expected = (1 if "fused" in kind else 2) * (3 if choice.median else 2)
    assert sum(name in ("MatMul", "Gemm", "FusedMatMul", "FusedGemm") for name in kinds) == expected


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_logits_under_autocast_keep_every_bit(choice: rh.Protection) -> None:
    for kind in KINDS:
        model = build(kind, (96, 64, 10))
        x = torch.randn(16, 96)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            before = model(x)
            protect(model, choice)
            with rh.ProtectionMonitor(model) as monitor:
                after = model(x)
        assert before.dtype == after.dtype
        assert same_bits(before, after)
        count = monitor.counts["0"]
        assert (count.restricted_values, count.checksum_alarms, count.outvoted_rows) == (0, 0, 0)


def test_a_wrapped_model_is_protected_fused_and_unwrapped() -> None:
    def small() -> nn.Sequential:
        return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 10)).eval()

    x = torch.randn(3, 12)
    for normalize in (True, False):
        model = rh.wrap_model(small(), embeddings="cifar10", normalize=normalize)
        rh.protect_(model, checksum=True)
        assert rh.is_wrapped(model)
        golden = model(x)
        rh.fuse(model)
        assert model[3].protection == rh.Protection(checksum=True)
        torch.testing.assert_close(model(x), golden, rtol=1e-4, atol=1e-4)
        rh.protect_(model, median=True)
        assert model[3].protection == rh.Protection(median=True)
    model = small()
    weight = model[3].weight
    rh.protect_(rh.wrap_model(model, embeddings="cifar10"), bounds=True, median=True)
    rh.unwrap_model(model)
    assert model[3].weight is weight


def test_the_constructor_takes_a_protection_and_files_keep_it(tmp_path: Path) -> None:
    choice = rh.Protection(bounds=True, checksum=True)
    head = rh.TextGuidedHead(8, (5, 6), protection=choice).eval()
    assert head.protection == choice
    head.save_pretrained(tmp_path / "head")
    loaded = rh.TextGuidedHead.from_pretrained(tmp_path / "head").eval()
    assert loaded.protection == choice
    x = torch.randn(2, 8)
    assert same_bits(loaded(x), head(x))


def test_a_campaign_injects_faults_into_the_guards_tensors() -> None:
    model = rh.wrap_model(
        nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 10)), embeddings="cifar10"
    )
    rh.protect_(model.eval(), median=True)
    x = torch.randn(16, 12)
    result = rh.run_campaign(model, (x, model(x).argmax(1)), protocol="raw", trials_per_site=40, progress=False)
    names = {site.site.name for site in result.sites}
    assert {"3.latent", "3.guard.third.unit", "3"} <= names
    for layer in result.by_layer():
        if layer.name.startswith("3."):
            assert layer.figures.masked.value == 1.0


@pytest.mark.slow
def test_the_example_reports_no_sdc_before_the_logits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    importlib.import_module("protected_head").main(images=1)
    plain, _, checksum, median = capsys.readouterr().out.splitlines()
    assert "before the logits      0 SDC,    0 DUE" not in plain
    assert "before the logits      0 SDC,    0 DUE" in checksum
    assert "before the logits      0 SDC,    0 DUE" in median


def named(layer: nn.Module) -> nn.Module:
    """Return a model whose last layer is the given one."""
    return nn.Sequential(nn.ReLU(), layer)


REFUSALS: dict[str, tuple[str, Callable[[], object]]] = {
    "no protection": ("at least one protection", lambda: rh.protect_(build("cosine"))),
    "checksum and median": ("not both", lambda: rh.protect_(build("cosine"), checksum=True, median=True)),
    "a number for a flag": ("must be True or False", lambda: rh.protect_(build("cosine"), bounds=1)),  # type: ignore[arg-type]
    "nothing to remove": ("no protected head", lambda: rh.unprotect_(build("cosine"))),
    "nothing to monitor": ("no protected head", lambda: rh.ProtectionMonitor(build("cosine"))),
    "a text-guided head named": (
        "leave classifier= out",
        lambda: rh.protect_(build("cosine"), bounds=True, classifier="0"),
    ),
    "a layer alone": ("pass the model that contains it", lambda: rh.protect_(nn.Linear(3, 2), bounds=True)),
    "no module to protect": ("model must be a Module", lambda: rh.protect_("model", bounds=True)),  # type: ignore[type-var]
    "no module to monitor": ("model must be a Module", lambda: rh.ProtectionMonitor("model")),  # type: ignore[arg-type]
    "a lazy layer protected": ("then protect it", lambda: rh.protect_(named(nn.LazyLinear(3)), bounds=True)),
    "a lazy layer wrapped": ("then wrap it", lambda: rh.wrap_model(named(nn.LazyLinear(3)), embeddings="cifar10")),
    "a pruned layer": (
        "protect it first, then quantise",
        lambda: rh.protect_(named(prune.identity(nn.Linear(3, 2), "weight")), bounds=True, classifier="1"),
    ),
    "an unknown layer": (
        "no layer named 'head'.*candidates: 1",
        lambda: rh.protect_(named(nn.Linear(3, 2)), bounds=True, classifier="head"),
    ),
    "no classifier": ("no classifier", lambda: rh.protect_(named(nn.LSTM(2, 2)), bounds=True)),
    "a compiled model": ("compiled", lambda: rh.protect_(torch.compile(build("cosine")), bounds=True)),
    "a traced model": (
        "TorchScript",
        lambda: rh.protect_(torch.jit.trace(build("cosine"), torch.randn(1, 24)), bounds=True),
    ),
}


@pytest.mark.filterwarnings("ignore")  # of torch.jit and lazy modules
@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_protected_is_refused(case: str) -> None:
    message, call = REFUSALS[case]
    with pytest.raises(rh.errors.ResilientHeadsError, match=message):
        call()


@pytest.mark.parametrize("wrong", ["checksum", True, object()], ids=["a string", "a boolean", "an object"])
def test_a_protection_must_be_a_protection(wrong: Any) -> None:
    with pytest.raises(rh.errors.ArgumentError, match="protection must be a Protection"):
        rh.TextGuidedHead(8, (5, 6), protection=wrong)
    with pytest.raises(rh.errors.ArgumentError, match="protection must be a Protection"):
        build("cosine")[0].protect(wrong)


@pytest.mark.parametrize("wrong", [3, [3], type(None)], ids=str)
def test_a_classifier_must_be_the_path_of_a_layer(wrong: Any) -> None:
    for kind in ("plain", "cosine"):
        with pytest.raises(rh.errors.ArgumentError, match="path of a layer"):
            rh.protect_(build(kind), bounds=True, classifier=wrong)
    with pytest.raises(rh.errors.ArgumentError, match="path of a layer"):
        rh.wrap_model(build("plain"), head=rh.TextGuidedHead(24, (5, 6)), classifier=wrong)
