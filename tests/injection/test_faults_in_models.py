"""Faults of every kind, in every place, in running models."""

import math
from collections import namedtuple
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import resilient_heads as rh
from helpers.injected import run_with_trials
from resilient_heads.errors import ArgumentError, FaultError, InjectionError
from resilient_heads.incremental.recording.words import words
from resilient_heads.injection.faults.effects import Effect
from resilient_heads.injection.faults.elements import Elements
from resilient_heads.injection.faults.fault_model import FaultModel
from resilient_heads.injection.faults.targets import Target


class Net(nn.Module):
    """Convolution, normalisation, embedding, attention: every kind of layer that faults should reach."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.act = nn.GELU()
        self.embed = nn.Embedding(10, 8)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.gather = nn.Identity()  # a functional step, named by its own module
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn(self.conv(x)))
        tokens = x.flatten(2).transpose(1, 2) + self.embed(torch.arange(x[0, 0].numel()) % 10)
        tokens = self.norm(tokens)
        tokens = tokens + self.attention(tokens, key=tokens, value=tokens)[0]
        return self.fc(self.gather(torch.einsum("ntc->nc", tokens)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(4)
    model = Net().eval()
    nn.init.normal_(model.bn.running_mean)
    nn.init.uniform_(model.bn.running_var, 0.5, 2.0)
    return model


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: words(tensor).clone() for name, tensor in model.state_dict().items()}


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def untouched(model: nn.Module, before: dict[str, Tensor]) -> bool:
    now = state(model)
    return hooks(model) == 0 and all(torch.equal(now[name], before[name]) for name in before)


PLACES: dict[str, tuple[str, Target]] = {
    "conv output": ("conv", rh.faults.Output()),
    "norm output": ("bn", rh.faults.Output()),
    "activation output": ("act", rh.faults.Output()),
    "layer norm input": ("norm", rh.faults.Input()),
    "embedding output": ("embed", rh.faults.Output()),
    "attention output": ("attention", rh.faults.Output()),
    "attention weights": ("attention", rh.faults.Output(path=1)),
    "attention query": ("attention", rh.faults.Input(path=0)),
    "attention key": ("attention", rh.faults.Input(path="key")),
    "functional op": ("gather", rh.faults.Input()),
    "linear input, one sample": ("fc", rh.faults.Input(path="input", batch_index=1)),
    "weight": ("conv", rh.faults.StoredTensor()),
    "bias": ("fc", rh.faults.StoredTensor(name="bias")),
    "attention projection": ("attention", rh.faults.StoredTensor(name="in_proj_weight")),
    "embedding table": ("embed", rh.faults.StoredTensor()),
    "running mean": ("bn", rh.faults.StoredTensor(name="running_mean")),
    "integer buffer": ("bn", rh.faults.StoredTensor(name="num_batches_tracked")),
}
EFFECTS: dict[str, dict[str, object]] = {
    "flip": {"effect": rh.faults.Flip()},
    "named bits": {"effect": rh.faults.Flip(bits=(20, 21))},
    "burst": {"effect": rh.faults.Flip(count=3, adjacent=True)},
    "stuck at 1": {"effect": rh.faults.StuckAt(value=1, bits=(22,))},
    "random word": {"effect": rh.faults.RandomWord()},
    "set": {"effect": rh.faults.SetValue(value=123.0)},
    "zero": {"effect": rh.faults.SetValue()},
    "negate": {"effect": rh.faults.Negate()},
    "maximum": {"effect": rh.faults.LayerMaximum()},
    "error rate": {"elements": rh.faults.ErrorRate(rate=0.05)},
    "every": {"elements": rh.faults.AllElements(), "effect": rh.faults.RandomValue(low=-1.0, high=1.0)},
    "fixed point": {"format": rh.formats.FixedPoint(integer_bits=4, fraction_bits=4)},
    "shared exponent": {"format": rh.formats.BlockFloat(block_size=None), "shared": True},
}


@pytest.mark.parametrize("kind", EFFECTS)
@pytest.mark.parametrize("place", PLACES)
@torch.no_grad()
def test_every_fault_strikes_and_leaves_nothing_behind(net: Net, place: str, kind: str) -> None:
    layer, tensor = PLACES[place]
    options = EFFECTS[kind]
    if place == "integer buffer" and kind in ("every", "fixed point", "shared exponent"):
        return  # rounds to the same integer
    x = torch.randn(3, 3, 4, 4)
    before, golden = state(net), net(x)
    fault = rh.Fault(layer=layer, tensor=tensor, seed=3, **options)  # type: ignore[arg-type]
    with rh.inject(net, fault) as report:
        first = net(x)
    assert report.injected > 0
    assert untouched(net, before)
    with rh.inject(net, fault) as again:
        assert torch.equal(words(net(x)), words(first)), "the same seed gave another fault"
    assert (again.injected, again.without_effect) == (report.injected, report.without_effect)
    if report.without_effect < report.injected and place not in ("attention weights", "integer buffer"):
        assert not torch.equal(words(first), words(golden)) or kind in ("flip", "burst", "stuck at 1", "named bits")
    assert torch.equal(words(net(x)), words(golden))


class BodyError(RuntimeError):
    """Raised by a test's own body."""


@pytest.mark.parametrize("failure", ["none", "body", "never ran", "inside the model"])
@pytest.mark.parametrize("kind", EFFECTS)
def test_everything_is_restored_whatever_fails(net: Net, kind: str, failure: str) -> None:
    x = torch.randn(2, 3, 4, 4)
    before = state(net)
    faults = [
        rh.Fault(layer=layer, tensor=tensor, **EFFECTS[kind])  # type: ignore[arg-type]
        for layer, tensor in (
            PLACES[name] for name in ("conv output", "attention key", "weight", "running mean", "bias")
        )
    ]
    expected: type[Exception] | None = {"none": None, "never ran": InjectionError}.get(failure, BodyError)

    def boom(*_: object) -> None:
        raise BodyError

    handle = net.fc.register_forward_pre_hook(boom) if failure == "inside the model" else None
    with pytest.raises(expected) if expected else nullcontext(), rh.inject(net, faults):
        if failure != "never ran":
            net(x)
        if failure == "body":
            raise BodyError
    if handle is not None:
        handle.remove()
    assert untouched(net, before)


# --- which tensor ---------------------------------------------------------------------------------------------------

Pair = namedtuple("Pair", "left right")


@dataclass
class Holder:
    count: int
    value: Tensor


class Gives(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> object:
        indices = torch.zeros(len(x), dtype=torch.long)
        match self.kind:
            case "tuple":
                return indices, x, x + 1
            case "list":
                return [indices, x, x + 1]
            case "namedtuple":
                return Pair(indices, x)
            case "dict":
                return {"i": indices, "x": x, "y": x + 1}
            case "nested":
                return indices, {"deep": [x, x + 1]}
        return Holder(3, x)


@pytest.mark.parametrize(
    ("kind", "path", "get"),
    [
        ("tuple", 1, lambda out: out[1]),
        ("list", 2, lambda out: out[2] - 1),
        ("namedtuple", 1, lambda out: out.right),
        ("dict", "y", lambda out: out["y"] - 1),
        ("nested", (1, "deep", 0), lambda out: out[1]["deep"][0]),
        ("dataclass", "value", lambda out: out.value),
    ],
)
def test_a_tensor_within_a_container(kind: str, path: object, get: object) -> None:
    model = nn.Sequential(Gives(kind))
    x = torch.ones(2, 3)
    flip = rh.Fault(
        layer="0",
        tensor=rh.faults.Output(path=path),  # type: ignore[arg-type]
        elements=rh.faults.IndexedElements(indices=(1,)),
        effect=rh.faults.Negate(),
    )
    with rh.inject(model, flip):
        out = model(x)
    assert type(out) is type(model(x))
    expected = [[1.0, -3.0 if path == "y" or path == 2 else -1.0, 1.0]] * 2
    assert get(out).tolist() == expected  # type: ignore[operator]
    assert x.tolist() == [[1.0] * 3] * 2
    with rh.inject(model, rh.BitFlip(layer="0", neuron=(1,), bit=31)):  # the first floating tensor
        first = model(x)
    if kind in ("tuple", "namedtuple"):
        assert first[1].tolist() == [[1.0, -1.0, 1.0]] * 2


def test_a_tensor_that_is_not_there(net: Net) -> None:
    x = torch.randn(2, 3, 4, 4)
    for tensor, message in (
        (rh.faults.Output(path=2), "has no member 2; it is a tuple with: 0, 1"),
        (rh.faults.Output(path=(0, 1)), "has no member 1"),
        (rh.faults.Input(path="nope"), "has no member 'nope'"),
        (rh.faults.Output(batch_dim=7), "has no dimension 7"),
        (rh.faults.Output(batch_index=2), "batch_index 2 does not exist in a batch of 2"),
    ):
        with pytest.raises(FaultError, match=message), rh.inject(net, rh.Fault(layer="attention", tensor=tensor)):
            net(x)
        assert hooks(net) == 0
    with (
        pytest.raises(FaultError, match=r"Expected the input of 'embed' to hold a floating tensor, found torch\.int64"),
        rh.inject(net, rh.Fault(layer="embed", tensor=rh.faults.Input())),
    ):
        net(x)


def test_a_model_output_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4
    )
    model = transformers.ViTModel(config).eval()
    outer = nn.ModuleDict({"vit": model})
    x = torch.randn(2, 3, 8, 8)
    golden = model(x)
    for path in (None, "pooler_output"):
        fault = rh.Fault(
            layer="vit",
            tensor=rh.faults.Output(path=path),
            effect=rh.faults.Flip(bits=(31,)),
            elements=rh.faults.AllElements(),
        )
        with rh.inject(outer, fault):
            found = outer["vit"](x)
        assert type(found) is type(golden)
        struck, other = ("last_hidden_state", "pooler_output") if path is None else (path, "last_hidden_state")
        assert torch.equal(found[struck], -golden[struck])
        assert torch.equal(getattr(found, struck), found[struck])
        assert torch.equal(found[other], golden[other])


def test_samples_need_not_come_first() -> None:
    model = nn.Sequential(nn.MultiheadAttention(4, 1))

    def run(x: Tensor) -> Tensor:
        return model[0](x, x, x)[0]

    x = torch.randn(5, 3, 4)  # tokens, samples, channels
    golden = run(x)
    fault = rh.Fault(
        layer="0",
        tensor=rh.faults.Output(batch_dim=1, batch_index=2),
        elements=rh.faults.IndexedElements(indices=(4, 1)),
        effect=rh.faults.Negate(),
    )
    with rh.inject(model, fault):
        found = run(x)
    assert (words(found) != words(golden)).nonzero().tolist() == [[4, 2, 1]]
    whole = rh.Fault(
        layer="0", tensor=rh.faults.Output(batch_dim=None), elements=rh.faults.IndexedElements(indices=(4, 2, 1))
    )
    with rh.inject(model, whole) as report:
        found = run(x)
    assert (words(found) != words(golden)).nonzero().tolist() == [[4, 2, 1]]
    assert report.injected == 1


class Repeats(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(self.layer(x)))


@pytest.mark.parametrize("call", [0, 1, 2])
@torch.no_grad()
def test_one_call_of_a_module_that_runs_several_times(call: int) -> None:
    model, x = Repeats(), torch.randn(2, 4)
    fault = rh.Fault(
        layer="layer",
        tensor=rh.faults.Output(call=call),
        elements=rh.faults.IndexedElements(indices=(1,)),
        effect=rh.faults.SetValue(value=9.0),
    )
    expected = x
    for i in range(3):
        expected = model.layer(expected)
        if i == call:
            expected[:, 1] = 9.0
    with rh.inject(model, fault) as report:
        assert torch.equal(model(x), expected)
        assert torch.equal(model(x), expected)  # counted anew in every run
    assert report.injected == 4
    with (
        pytest.raises(InjectionError, match="No fault was injected into 'layer' in call 3 of a forward pass"),
        rh.inject(model, rh.Fault(layer="layer", tensor=rh.faults.Output(call=3))),
    ):
        model(x)


# --- draws ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "elements", [rh.faults.RandomElements(), rh.faults.RandomElements(count=3), rh.faults.ErrorRate(rate=0.02)], ids=str
)
@torch.no_grad()
def test_the_batch_size_changes_no_fault(elements: Elements) -> None:
    model, x = nn.Sequential(nn.Identity(), nn.Identity()), torch.randn(12, 7)
    fault = rh.Fault(layer="0", elements=elements, seed=5)
    found = []
    for size in (12, 5, 1):
        with rh.inject(model, fault):
            found.append(torch.cat([model(part) for part in x.split(size)]))
    assert torch.equal(words(found[0]), words(found[1]))
    assert torch.equal(words(found[0]), words(found[2]))
    draws = fault.model.draw(5, "0", np.arange(12), neurons=7, word_bits=32)
    assert ((words(found[0]) != words(x)).sum(dim=1).numpy() == (draws.neurons >= 0).sum(axis=1)).all()


def test_samples_differ_unless_the_fault_is_fixed() -> None:
    model, x = nn.Sequential(nn.Identity()), torch.ones(40, 9)
    for fixed, places in ((False, 9), (True, 1)):
        with rh.inject(
            model, rh.Fault(layer="0", elements=rh.faults.RandomElements(fixed=fixed), effect=rh.faults.SetValue())
        ):
            found = torch.cat([model(x), model(x)])
        assert len(set((found == 0).nonzero()[:, 1].tolist())) == places


def test_a_random_bit_of_a_named_element_can_be_permanent() -> None:
    model, x = nn.Sequential(nn.Identity()), torch.zeros(40, 2)
    for fixed in (False, True):
        with rh.inject(
            model, rh.Fault(layer="0", elements=rh.faults.IndexedElements(indices=(1,), fixed=fixed), seed=3)
        ):
            found = words(model(x))
        assert found[:, 0].count_nonzero() == 0
        assert (len(found[:, 1].unique()) == 1) == fixed


def test_error_rate_over_a_whole_model(net: Net) -> None:
    net.tied = nn.Linear(8, 4)
    net.tied.weight = net.fc.weight
    before = state(net)
    fault = rh.Fault(
        layer="*", tensor=rh.faults.StoredTensor(name=None), elements=rh.faults.ErrorRate(rate=0.01), seed=1
    )
    with rh.inject(net, fault) as report:
        flipped = 0
        for name, tensor in net.named_parameters():  # each shared one once
            flipped += sum(
                (word & 0xFFFFFFFF).bit_count() for word in (words(tensor.data) ^ before[name]).flatten().tolist()
            )
        buffers = {name for name, _ in net.named_buffers()}
        assert all(torch.equal(words(net.state_dict()[name]), before[name]) for name in buffers)
    bits = 32 * sum(p.numel() for p in net.parameters())
    assert abs(flipped - bits * 0.01) < 4.5 * math.sqrt(bits * 0.0099)
    assert 0 < report.injected <= flipped
    assert untouched(net, before)


def test_patterns(net: Net) -> None:
    x = torch.randn(2, 3, 4, 4)
    # conv, bn, norm, attention.out_proj: the last is used functionally, so it is called here.
    with rh.inject(net, rh.Fault(layer="*n*", effect=rh.faults.SetValue(value=7.0))) as report:
        net(x)
        net.attention.out_proj(torch.ones(2, 8))
    assert report.injected == 2 * 3 + 2
    with (
        pytest.raises(InjectionError, match=r"No fault was injected into 'attention\.out_proj'"),
        rh.inject(net, rh.Fault(layer="*out_proj")),
    ):
        net(x)
    with rh.inject(
        net, rh.Fault(layer="*", tensor=rh.faults.StoredTensor(name="running_var"), effect=rh.faults.SetValue())
    ) as report:
        assert report.injected == 1
    for fault, message in (
        (rh.Fault(layer="layer*"), "No layer of Net matches 'layer\\*'; its layers are: conv, bn"),
        (
            rh.Fault(layer="*", tensor=rh.faults.StoredTensor(name="wieght")),
            "No layer of Net that matches .* holds 'wieght'",
        ),
        (rh.Fault(layer="nothing*", tensor=rh.faults.StoredTensor(name=None)), "holds a parameter"),
        (rh.Fault(layer="act", tensor=rh.faults.StoredTensor(name=None)), "'act' has no parameters"),
    ):
        with pytest.raises(FaultError, match=message), rh.inject(net, fault):
            pytest.fail("the body must not run")


# --- the report, and flips that are no flips ------------------------------------------------------------------------


def test_what_is_stuck_where_it_was_is_counted() -> None:
    model = nn.Sequential(nn.Identity())
    x = torch.tensor([[1.0], [-1.0], [2.0], [-0.0]])
    at = rh.faults.IndexedElements(indices=(0,))
    with rh.inject(model, rh.Fault(layer="0", elements=at, effect=rh.faults.StuckAt(value=1, bits=(31,)))) as report:
        assert model(x).tolist() == [[-1.0], [-1.0], [-2.0], [-0.0]]
        assert (report.injected, report.without_effect) == (4, 2)
        model(x[1:2])
    assert (report.injected, report.without_effect) == (5, 3)
    with rh.inject(model, rh.Fault(layer="0", elements=at, effect=rh.faults.SetValue())) as report:
        model(torch.zeros(3, 1))
    assert (report.injected, report.without_effect) == (3, 3)
    weight = nn.Sequential(nn.Linear(1, 2))
    nn.init.ones_(weight[0].weight)
    stuck = rh.Fault(
        layer="0",
        tensor=rh.faults.StoredTensor(),
        elements=rh.faults.AllElements(),
        effect=rh.faults.StuckAt(value=0, bits=(31,)),
    )
    with rh.inject(weight, stuck) as report:
        assert (report.injected, report.without_effect) == (2, 2)


def test_a_flip_that_changes_nothing_raises() -> None:
    model = nn.Sequential(nn.Identity())
    x = torch.tensor([[100.0]], dtype=torch.bfloat16)
    form = rh.formats.FloatingPoint(exponent_bits=8, mantissa_bits=23)  # finer than what the tensor holds
    fault = rh.Fault(
        layer="0", elements=rh.faults.IndexedElements(indices=(0,)), effect=rh.faults.Flip(bits=(0,)), format=form
    )
    with pytest.raises(InjectionError, match="the number format is finer than the tensor's"), rh.inject(model, fault):
        model(x)
    twice = rh.Fault(layer="0", effect=rh.faults.Flip(bits=(3,)), elements=rh.faults.AllElements())
    with pytest.raises(InjectionError, match="another fault undoes it"), rh.inject(model, [twice, twice]):
        model(x)
    beside = rh.Fault(
        layer="0", effect=rh.faults.Flip(bits=(5,)), elements=rh.faults.AllElements()
    )  # the value does change, not as asked
    with pytest.raises(InjectionError, match="another fault undoes it"), rh.inject(model, [twice, twice, beside]):
        model(x)
    overwritten = [
        twice,
        rh.Fault(layer="0", effect=rh.faults.StuckAt(value=0, bits=(3,)), elements=rh.faults.AllElements()),
    ]
    with pytest.raises(InjectionError, match="another fault undoes it"), rh.inject(model, overwritten):
        model(x.fill_(1.0))


def test_faults_in_one_tensor_follow_each_other() -> None:
    model = nn.Sequential(nn.Identity())
    x = torch.tensor([[2.0, 3.0]])
    faults = [
        rh.Fault(layer="0", elements=rh.faults.IndexedElements(indices=(0,)), effect=rh.faults.SetValue(value=5.0)),
        rh.Fault(layer="0", elements=rh.faults.IndexedElements(indices=(0,)), effect=rh.faults.Negate()),
        rh.Fault(
            layer="0", elements=rh.faults.IndexedElements(indices=((0,), (1,))), effect=rh.faults.Flip(bits=(22,))
        ),
    ]
    with rh.inject(model, faults):
        assert model(x).tolist() == [[-7.0, 2.0]]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: rh.Fault(layer="0", tensor="weight"), "Expected Output"),  # type: ignore[arg-type]
        (lambda: rh.Fault(layer="0", seed=-1), "seed must be a whole number"),
        (lambda: rh.Fault(layer="0", seed=0.5), "seed must be a whole number"),  # type: ignore[arg-type]
        (lambda: rh.faults.Output(call=-1), "call must be a whole number of at least 0"),
        (lambda: rh.faults.Output(batch_index=1.5), "batch_index must be a whole number"),  # type: ignore[arg-type]
        (lambda: rh.faults.IndexedElements(indices=((1,), (1.5,))), "index must be a whole number"),  # type: ignore[arg-type]
    ],
)
def test_faults_that_cannot_be(build: object, message: str) -> None:
    with pytest.raises((ArgumentError, FaultError), match=message):
        build()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            rh.Fault(layer="0", elements=rh.faults.RandomElements(count=5)),
            "count=5 different elements were asked for, but the tensor has 3",
        ),
        (rh.Fault(layer="0", effect=rh.faults.Flip(bits=(32,))), r"Bit 32 does not exist in torch\.float32"),
        (
            rh.Fault(
                layer="0",
                effect=rh.faults.Flip(bits=(9,)),
                format=rh.formats.FixedPoint(integer_bits=4, fraction_bits=4),
            ),
            "Bit 9 does not exist in a word of 9 bits",
        ),
        (
            rh.Fault(
                layer="0",
                elements=rh.faults.IndexedElements(indices=(2,)),
                format=rh.formats.BlockFloat(block_size=2),
                shared=True,
            ),
            r"the output of '0' has no element \(2,\); its shape is \(2,\)",
        ),
        (rh.Fault(layer="0", tensor=rh.faults.StoredTensor(name="weight.qdata")), "'weight' of '0' holds no 'qdata'"),
        (rh.Fault(layer="0", format=rh.formats.AffineInteger(scale=(1.0, 2.0))), "2 scales do not divide 3 values"),
    ],
)
def test_faults_that_do_not_fit(fault: rh.Fault, message: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(FaultError, match=message), rh.inject(model, fault):
        model(torch.ones(2, 3))
    assert hooks(model) == 0


def test_a_named_shared_word() -> None:
    model = nn.Sequential(nn.Identity())
    form = rh.formats.BlockFloat(exponent_bits=5, mantissa_bits=8, block_size=2)
    fault = rh.Fault(
        layer="0",
        elements=rh.faults.IndexedElements(indices=(1,)),
        effect=rh.faults.Flip(bits=(1,)),
        format=form,
        shared=True,
    )
    with rh.inject(model, fault):
        assert model(torch.tensor([[1.0, 3.0, 0.5, 1.0]])).tolist() == [[1.0, 3.0, 0.125, 0.25]]


# --- batches of trials ----------------------------------------------------------------------------------------------

TRIALS: dict[str, FaultModel] = {
    "default": FaultModel(),
    "several": FaultModel(elements=rh.faults.RandomElements(count=3), effect=rh.faults.Flip(count=2)),
    "rate": FaultModel(elements=rh.faults.ErrorRate(rate=0.001)),
    "stuck": FaultModel(effect=rh.faults.StuckAt(value=1, bits=(31,))),
    "maximum": FaultModel(effect=rh.faults.LayerMaximum()),
    "block": FaultModel(format=rh.formats.BlockFloat(block_size=4), shared=True),
    "format": FaultModel(format=rh.formats.FloatingPoint(exponent_bits=4, mantissa_bits=3, specials="fn")),
}


@pytest.mark.parametrize("kind", TRIALS)
@torch.no_grad()
def test_trials_of_a_batch_are_single_faults(net: Net, kind: str) -> None:
    """Row i of a batch is what inject() does to sample i with the same seed."""
    x, model = torch.randn(6, 3, 4, 4), TRIALS[kind]
    neurons = 8 * 4 * 4
    draws = model.draw(2, "conv", np.arange(6), neurons=neurons, word_bits=32)
    golden = net.conv(x)
    injection, found = run_with_trials(net, x, "conv", draws, fault_model=model)
    fault = rh.Fault(
        layer="conv", elements=model.elements, effect=model.effect, format=model.format, shared=model.shared, seed=2
    )
    with rh.inject(net, fault) as report:
        assert torch.equal(words(net(x)), words(found))
    first = torch.from_numpy(draws.neurons[:, 0])
    injected = first >= 0
    assert report.injected == int((draws.neurons >= 0).sum())
    before = golden.flatten(1).gather(1, first.clamp(min=0)[:, None])[:, 0]
    assert torch.equal(injection.before[injected], before[injected])
    assert injection.before.isnan().tolist() == (~injected).tolist()
    assert hooks(net) == 0


def test_trials_with_a_detector() -> None:
    model = nn.Sequential(nn.Identity())
    x = torch.tensor([[0.75], [3.0]])
    chosen = FaultModel(effect=rh.faults.Flip(bits=(30,)))
    draws = chosen.draw(0, "0", np.arange(2), neurons=1, word_bits=32)
    for detector, expected in (("clamp", 2.0), ("zero", 0.0)):
        injection, found = run_with_trials(
            model,
            x,
            "0",
            draws,
            fault_model=chosen,
            range_limit=2.0,
            detector=detector,  # type: ignore[arg-type]
        )
        assert found[0].item() == expected
        assert injection.after[0].item() == 0.75 * 2.0**128
    with pytest.raises(ArgumentError, match="range_limit must be a number of at least 0"):
        run_with_trials(model, x, "0", draws, range_limit=-1.0)


# --- emulation ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_under_emulation_every_value_is_of_the_format(net: Net) -> None:
    x, form = torch.randn(3, 3, 4, 4), rh.formats.FixedPoint(integer_bits=3, fraction_bits=3)
    golden = net(x)
    seen: list[Tensor] = []
    with rh.emulate(net, form):
        handle = net.conv.register_forward_hook(lambda _m, _i, out: seen.append(out.clone()))
        coarse = net(x)
        handle.remove()
        assert torch.equal(coarse, net(x))
        # A fault through the same format changes one bit of one word that the layer holds.
        with rh.inject(
            net,
            rh.Fault(
                layer="fc",
                elements=rh.faults.IndexedElements(indices=(2,)),
                effect=rh.faults.Flip(bits=(3,)),
                format=form,
            ),
        ):
            struck = net(x)
    difference = form.encode(struck.double()) ^ form.encode(coarse.double())
    assert difference.tolist() == [[0, 0, 8, 0]] * 3
    assert torch.equal(seen[0] * 8, (seen[0] * 8).round())
    assert torch.equal(coarse * 8, (coarse * 8).round())
    assert not torch.equal(coarse, golden)
    assert torch.equal(net(x), golden)
    assert hooks(net) == 0


def test_emulation_of_named_layers_and_of_shared_words() -> None:
    model = nn.Sequential(nn.Identity(), nn.Identity()).eval()
    x = torch.tensor([[1.0, 0.3], [100.0, 0.3]])
    with rh.emulate(model, rh.formats.BlockFloat(mantissa_bits=3), layers="0"):
        assert model(x).tolist() == [[1.0, 0.25], [96.0, 0.0]]  # each sample has its own exponent
    for layers, message in (("9", "matches '9'"), (None, "no Conv and no Linear"), (("0", "x*"), "matches 'x")):
        with pytest.raises(FaultError, match=message), rh.emulate(model, rh.formats.BlockFloat(), layers=layers):
            pytest.fail("the body must not run")
    with (
        pytest.raises(InjectionError, match="No output was rounded"),
        rh.emulate(model, rh.formats.BlockFloat(), layers="*"),
    ):
        pass


def test_effects_have_a_readable_form() -> None:
    effect: Effect = rh.faults.StuckAt(value=1, bits=(3,))
    fault = rh.Fault(layer="fc", effect=effect)
    assert "StuckAt(bits=(3,), count=1, adjacent=False, value=1)" in repr(fault)
    assert fault == rh.Fault(layer="fc", effect=rh.faults.StuckAt(value=1, bits=(3,)))
    assert len({fault, rh.Fault(layer="fc", effect=effect)}) == 1
