"""A fault in a stored tensor is undone wherever the block moves it, or the end of the block raises."""

import copy
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import resilient_heads as rh
from resilient_heads.errors import FaultError, InjectionError
from resilient_heads.incremental.recording.words import words

Mutation = Callable[[nn.Module], object]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 4)
        self.fc2 = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc(self.bn(self.conv1(x)).mean(dim=(2, 3)))))


FC = rh.WeightBitFlip(layer="fc", index=(1, 2), bit=30)
CONV = rh.WeightBitFlip(layer="conv1", index=(0, 0, 0, 0), bit=30)
X = torch.linspace(-1, 1, 2 * 3 * 5 * 5).reshape(2, 3, 5, 5)


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: words(value).clone() for name, value in model.state_dict().items() if not value.is_meta}


def assert_same_bits(model: nn.Module, expected: nn.Module) -> None:
    found, wanted = model.state_dict(), expected.state_dict()
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert (found[name].dtype, found[name].stride()) == (value.dtype, value.stride()), name
        assert value.is_meta or torch.equal(words(found[name]), words(value)), name


def set_data(model: Net) -> None:
    model.fc.weight.data = model.fc.weight.data.clone()


def deep_module(model: Net) -> None:
    model.fc = copy.deepcopy(model.fc)


def tie(model: Net) -> None:
    model.fc2.weight = model.fc.weight


def copy_elsewhere(model: Net) -> None:
    model.fc2.load_state_dict(model.fc.state_dict())


def untied(model: Net) -> None:
    model.conv1.weight = nn.Parameter(model.conv1.weight.detach().clone(), requires_grad=False)


FOLLOWED: dict[str, Mutation] = {
    "channels_last": lambda m: m.to(memory_format=torch.channels_last),
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.bfloat16(),
    "double": lambda m: m.double(),
    "there and back": lambda m: m.double().float(),
    "another copy": set_data,
    "a parameter with the same values": untied,
    "a copied module": deep_module,
    "tied": tie,
    "copied to another layer": copy_elsewhere,
    "shared memory": lambda m: m.share_memory(),
    "frozen": lambda m: m.requires_grad_(False),
    "assigned its own state": lambda m: m.load_state_dict(
        {k: v.clone() for k, v in m.state_dict().items()}, assign=True
    ),
    "swapped": lambda m: torch.utils.swap_tensors(m.fc.weight, nn.Parameter(m.fc.weight.detach().clone())),
}


@pytest.mark.parametrize("mutation", FOLLOWED)
@pytest.mark.parametrize("fault", [FC, CONV], ids=["fc", "conv1"])
def test_a_fault_is_undone_where_the_block_moves_it(mutation: str, fault: rh.WeightBitFlip) -> None:
    model, expected = Net(), Net()
    FOLLOWED[mutation](expected)
    with rh.inject(model, fault):
        FOLLOWED[mutation](model)
    assert_same_bits(model, expected)


def fill(model: Net) -> None:
    with torch.no_grad():
        model.fc.weight.fill_(3.0)


def assign_data(model: Net) -> None:
    model.fc.weight.data = torch.full((4, 4), 7.0)


def assign_parameter(model: Net) -> None:
    model.fc.weight = nn.Parameter(torch.zeros(4, 4))


def other_state(model: Net, assign: bool) -> None:
    model.load_state_dict({name: value * 0 + 2 for name, value in model.state_dict().items()}, assign=assign)


def replace(model: Net) -> None:
    torch.manual_seed(5)
    model.fc = nn.Linear(4, 4)


def delete(model: Net) -> None:
    del model.fc


LOST: dict[str, Mutation] = {
    "filled": fill,
    "other data": assign_data,
    "other parameter": assign_parameter,
    "loaded in place": lambda m: other_state(m, assign=False),
    "loaded by assignment": lambda m: other_state(m, assign=True),
    "replaced": replace,
    "deleted": delete,
    "meta": lambda m: m.to("meta"),
}


@pytest.mark.parametrize("mutation", LOST)
def test_values_of_the_user_stay_and_the_end_says_that_the_fault_was_not_there(mutation: str) -> None:
    model, expected = Net(), Net()
    LOST[mutation](expected)
    with (
        pytest.raises(InjectionError, match=r"The weight of 'fc' was overwritten, moved or replaced inside the inject"),
        rh.inject(model, FC),
    ):
        LOST[mutation](model)
    assert_same_bits(model, expected)


def step(model: Net) -> None:
    model(X).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=1e-3).step()


def running_mean(model: Net) -> None:
    model.train()(X)


def half_and_step(model: Net) -> None:
    model.fc.half()
    with torch.no_grad():
        model.fc.weight[3] += 1


DERIVED: dict[str, tuple[rh.WeightBitFlip, Mutation, str]] = {
    "an optimizer's step": (
        rh.WeightBitFlip(layer="fc2", index=(1,), bit=22, parameter="bias"),
        step,
        "was overwritten",
    ),
    "running statistics": (
        rh.WeightBitFlip(layer="bn", index=(1,), bit=22, parameter="running_mean"),
        running_mean,
        "running_mean of 'bn' was overwritten",
    ),
    "its own state loaded": (FC, lambda m: m.load_state_dict(copy.deepcopy(m.state_dict())), "was overwritten"),
    "lower precision and back": (FC, lambda m: m.half().float(), "was overwritten"),
    "another type and a step": (FC, half_and_step, "still holds the fault"),
    "parametrised": (
        FC,
        lambda m: parametrize.register_parametrization(m.fc, "weight", nn.Identity()),
        "was overwritten, moved",
    ),
    "weight_norm": (FC, lambda m: parametrizations.weight_norm(m.fc), "was overwritten, moved"),
    "spectral_norm": (FC, lambda m: parametrizations.spectral_norm(m.fc), "was overwritten, moved"),
    "pruned": (FC, lambda m: prune.l1_unstructured(m.fc, "weight", amount=1), "still holds the fault"),
}


@pytest.mark.parametrize("mutation", DERIVED)
def test_values_that_were_computed_from_faulty_ones_are_reported(mutation: str) -> None:
    fault, mutate, message = DERIVED[mutation]
    model = Net().eval()
    with pytest.raises(InjectionError, match=message), rh.inject(model, fault):
        mutate(model)


class BodyError(RuntimeError):
    """Raised by a test's own body."""


def mutate_and_raise(model: Net, mutate: Mutation, error: BaseException) -> None:
    with rh.inject(model, FC):
        mutate(model)
        raise error


def test_the_bodys_error_is_not_swallowed() -> None:
    with pytest.raises(BodyError) as found:
        mutate_and_raise(Net(), fill, BodyError())
    assert "The weight of 'fc' was overwritten" in found.value.__notes__[0]
    with pytest.raises(InjectionError, match="still holds the fault") as chained:
        mutate_and_raise(Net(), half_and_step, BodyError())
    assert isinstance(chained.value.__cause__, BodyError)
    with pytest.raises(KeyboardInterrupt) as stopped:
        mutate_and_raise(Net(), half_and_step, KeyboardInterrupt())
    assert "still holds the fault" in stopped.value.__notes__[0]
    with pytest.raises(BodyError) as clean:
        mutate_and_raise(Net(), set_data, BodyError())
    assert not hasattr(clean.value, "__notes__")


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0), (0, 2, 1), (2, 0, 1)])
@pytest.mark.parametrize("move", [False, True])
def test_blocks_that_end_in_any_order(order: tuple[int, ...], move: bool) -> None:
    faults = [
        [FC],
        [rh.WeightBitFlip(layer="fc", index=(1, 2), bit=3), CONV],
        [FC.__class__(layer="fc", index=(0, 0), bit=1), FC],
    ]
    model = Net()
    blocks = [ExitStack() for _ in faults]
    for block, chosen in zip(blocks, faults, strict=True):
        block.enter_context(rh.inject(model, chosen))
    if move and order == (2, 1, 0):
        model.double()
    for number in order:
        blocks[number].close()
    assert_same_bits(model, Net().double() if move and order == (2, 1, 0) else Net())


def test_other_memory_between_two_blocks() -> None:
    model = Net()
    with rh.inject(model, FC):
        model.half()
        with rh.inject(model, rh.WeightBitFlip(layer="fc", index=(3, 3), bit=2)):
            pass
    assert_same_bits(model, Net().half())


def test_equal_layers_are_not_copies_of_each_other() -> None:
    """Layers that are initialised as copies, as PyTorch's transformers are, hold equal faults by chance."""
    layer = nn.Linear(4, 4)
    model, expected = (nn.Sequential(*(copy.deepcopy(layer) for _ in range(3))) for _ in range(2))
    fault = rh.Fault(
        layer="*",
        tensor=rh.faults.StoredTensor(),
        elements=rh.faults.IndexedElements(indices=(1, 2)),
        effect=rh.faults.Flip(bits=(30,)),
    )
    inner = rh.Fault(layer="0", tensor=rh.faults.StoredTensor(), seed=4)
    with rh.inject(model, fault) as report, rh.inject(model, inner):
        assert report.injected == 3
    assert_same_bits(model, expected)


def test_a_constant_of_the_user_is_not_the_fault() -> None:
    zeros = rh.Fault(
        layer="fc", tensor=rh.faults.StoredTensor(), elements=rh.faults.AllElements(), effect=rh.faults.SetValue()
    )
    model = Net()
    with pytest.raises(InjectionError, match="The weight of 'fc' still holds the fault"), rh.inject(model, zeros):
        assign_parameter(model)
    assert torch.equal(model.fc.weight, torch.zeros(4, 4))
    model, other = Net(), Net()
    other.fc2.weight.data.zero_()
    model.fc2.weight.data.zero_()
    with rh.inject(model, zeros):
        pass
    assert_same_bits(model, other)


def test_views_and_flags_stay() -> None:
    model = Net()
    model.fc.weight.grad = torch.ones(4, 4)
    kept = model.fc.weight, model.fc.weight.data_ptr(), model.fc.weight.grad
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    with rh.inject(model, [FC, rh.Fault(layer="fc2")]):
        model(X)
    assert kept[0] is model.fc.weight
    assert kept[1:] == (model.fc.weight.data_ptr(), model.fc.weight.grad)
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [module.training for module in model.modules()]


def negated(layer: str, name: str) -> rh.Fault:
    tensor, every = rh.faults.StoredTensor(name=name), rh.faults.AllElements()
    return rh.Fault(layer=layer, tensor=tensor, elements=every, effect=rh.faults.Negate())


@pytest.mark.parametrize("layer", ["fc", "fc2"])
def test_backward_after_the_block_raises_where_the_gradient_would_be_of_another_weight(layer: str) -> None:
    model, x = Net(), X.clone().requires_grad_()
    fault = negated(layer, "weight")
    with rh.inject(model, fault):
        inside = model(x).sum()
        expected = torch.autograd.grad(inside, x, retain_graph=True)[0]
    assert not torch.equal(expected, torch.autograd.grad(model(x).sum(), x)[0])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        inside.backward()
    before = model(x).sum()
    with rh.inject(model, fault), pytest.raises(RuntimeError, match="modified by an inplace operation"):
        before.backward()


def test_backward_after_the_block_of_a_fault_that_no_gradient_reads() -> None:
    model, x = Net(), X.clone().requires_grad_()
    expected = torch.autograd.grad(model(x).sum(), x)[0]
    with rh.inject(model, rh.WeightBitFlip(layer="fc2", parameter="bias", index=(1,), bit=22)):
        total = model(x).sum()
    assert torch.equal(torch.autograd.grad(total, x)[0], expected)


def test_parametrize_cached_around_the_block_neither_hides_the_fault_nor_keeps_it() -> None:
    model = Net()
    parametrizations.weight_norm(model.fc)
    fault = negated("fc.parametrizations.weight", "original1")
    golden = model(X)
    with rh.inject(model, fault):
        faulty = model(X)
    assert not torch.equal(faulty, golden)
    with parametrize.cached():
        assert torch.equal(model(X), golden)
        with rh.inject(model, fault):
            assert torch.equal(model(X), faulty)
        assert torch.equal(model(X), golden)


def test_the_memory_of_a_weight_can_still_be_freed() -> None:
    model = Net()
    with rh.inject(model, FC):
        pass
    model.fc.weight.untyped_storage().resize_(0)
    assert model.fc.weight.untyped_storage().nbytes() == 0


def test_weights_that_were_made_under_inference_mode() -> None:
    with torch.inference_mode():
        model = Net()
    with pytest.raises(FaultError, match=r"torch\.inference_mode\(\)"), rh.inject(model, FC):
        pass
    with torch.inference_mode(), rh.inject(model, FC):
        assert not torch.equal(model.fc.weight, Net().fc.weight)
    assert torch.equal(model.fc.weight, Net().fc.weight)
