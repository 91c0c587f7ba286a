"""A forward pass that activation checkpointing computes again meets the same faults and counts once."""

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential, set_checkpoint_early_stop

import resilient_heads as rh
from resilient_heads.errors import InjectionError

THREE = rh.faults.RandomElements(count=3)
FIVE = rh.faults.SetValue(value=5.0)
FAULTS = {
    "output": rh.Fault(layer="conv1", elements=THREE, effect=FIVE),
    "input": rh.Fault(layer="conv2", tensor=rh.faults.Input(), elements=THREE, effect=FIVE),
    "flip": rh.Fault(layer="conv2", effect=rh.faults.Flip(bits=(22,))),
    "two": [rh.Fault(layer="conv1", elements=THREE, effect=FIVE), rh.Fault(layer="act", seed=3)],
    "last of the segment": rh.Fault(layer="act", tensor=rh.faults.Output(call=1), elements=THREE, effect=FIVE),
    "fixed": rh.Fault(layer="conv1", elements=rh.faults.RandomElements(fixed=True), effect=FIVE),
    "weight": rh.WeightBitFlip(layer="conv1", index=(0, 0, 0, 0), bit=22),
}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="None of the inputs have requires_grad")
        yield


class Net(nn.Module):
    """Two convolutions with dropout between them, and a way to run them."""

    def __init__(self, run: Callable[["Net", Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.run = run
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.act = nn.ReLU()
        self.drop = nn.Dropout(0.3)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 3)

    def block(self, x: Tensor) -> Tensor:
        return self.act(self.conv2(self.drop(self.act(self.conv1(x)))))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.run(self, x).mean(dim=(2, 3)))


def segments(net: Net, x: Tensor, reentrant: bool) -> Tensor:
    layers = [net.conv1, net.act, net.drop, net.conv2, net.act]
    return checkpoint_sequential(layers, 2, x, use_reentrant=reentrant)


def without_early_stop(net: Net, x: Tensor) -> Tensor:
    with set_checkpoint_early_stop(False):
        return checkpoint(net.block, x, use_reentrant=False)


def nested(net: Net, x: Tensor) -> Tensor:
    return checkpoint(lambda y: checkpoint(net.block, y, use_reentrant=False), x, use_reentrant=False)


RUNS: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "new": lambda net, x: checkpoint(net.block, x, use_reentrant=False),
    "reentrant": lambda net, x: checkpoint(net.block, x, use_reentrant=True),
    "sequential": lambda net, x: segments(net, x, False),
    "sequential reentrant": lambda net, x: segments(net, x, True),
    "without early stop": without_early_stop,
    "nested": nested,
}


def gradients(model: Net, fault: object, steps: int = 3) -> tuple[list[Tensor], int]:
    """Accumulate the gradients of some batches."""
    torch.manual_seed(1)
    with rh.inject(model, fault) as report:  # type: ignore[arg-type]
        for _ in range(steps):
            model(torch.randn(4, 3, 6, 6, requires_grad=True)).square().sum().backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None], report.injected


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("run", RUNS)
def test_gradients_are_those_without_checkpointing(run: str, fault: str) -> None:
    expected, injected = gradients(Net(Net.block), FAULTS[fault])
    found, again = gradients(Net(RUNS[run]), FAULTS[fault])
    assert again == injected
    assert len(found) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_each_batch_of_gradient_accumulation_gets_draws_of_its_own() -> None:
    fault = rh.Fault(layer="conv1", elements=THREE, effect=FIVE)
    for run in (Net.block, RUNS["new"], RUNS["reentrant"]):
        model, x, seen = Net(run).eval(), torch.ones(2, 3, 6, 6, requires_grad=True), []
        with rh.inject(model, fault):
            handle = model.conv1.register_forward_hook(lambda _m, _i, output, seen=seen: seen.append(output == 5.0))
            for _ in range(2):
                model(x).sum().backward()
        handle.remove()
        passes = seen if run is Net.block else seen[::2]
        assert [int(one.sum()) for one in seen] == [6] * len(seen)
        assert not torch.equal(passes[0], passes[1])
        if run is not Net.block:
            assert torch.equal(seen[0], seen[1])
            assert torch.equal(seen[2], seen[3])


@pytest.mark.parametrize("run", ["new", "without early stop"])
def test_a_graph_that_is_kept_for_a_second_backward_pass(run: str) -> None:
    results = []
    for chosen in (Net.block, RUNS[run]):
        model, x = Net(chosen).eval(), torch.linspace(-1, 1, 216).reshape(2, 3, 6, 6).requires_grad_()
        with rh.inject(model, FAULTS["output"]) as report:
            loss = model(x).square().sum()
            (slope,) = torch.autograd.grad(loss, x, create_graph=True)
            slope.square().sum().backward()
        results.append(([p.grad for p in model.parameters() if p.grad is not None], report.injected))
    assert results[0][1] == results[1][1] == 6
    assert all(torch.equal(one, other) for one, other in zip(results[0][0], results[1][0], strict=True))


@pytest.mark.parametrize("run", ["new", "reentrant"])
def test_two_losses_that_are_summed(run: str) -> None:
    found = []
    for chosen in (Net.block, RUNS[run]):
        model = Net(chosen).eval()
        first, second = (torch.full((2, 3, 6, 6), value, requires_grad=True) for value in (0.5, -0.5))
        with rh.inject(model, FAULTS["output"]):
            (model(first).sum() + model(second).square().sum()).backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("run", ["new", "reentrant"])
def test_equal_passes_that_cannot_be_distinguished_are_refused(run: str) -> None:
    model, x = Net(RUNS[run]).eval(), torch.ones(2, 3, 6, 6, requires_grad=True)
    with (
        pytest.raises(InjectionError, match="several forward passes inside the inject block gave the same values"),
        rh.inject(model, FAULTS["output"]),
    ):
        (model(x).sum() + model(x).square().sum()).backward()
    with rh.inject(model, FAULTS["fixed"]) as report:  # The draws are the same, so the passes need no distinction.
        (model(x).sum() + model(x).square().sum()).backward()
    assert report.injected == 4
    with rh.inject(model, FAULTS["output"]):
        with torch.no_grad():
            model(x)
        model(x).sum().backward()


@pytest.mark.parametrize("fault", ["output", "weight"])
@pytest.mark.parametrize("run", ["new", "reentrant"])
def test_backward_after_the_block_is_refused(run: str, fault: str) -> None:
    model, x = Net(RUNS[run]), torch.ones(2, 3, 6, 6, requires_grad=True)
    with rh.inject(model, FAULTS[fault]):
        loss = model(x).sum()
    with pytest.raises(InjectionError, match="backward\\(\\) was called after the inject block"):
        loss.backward()
    plain = Net(Net.block)
    with rh.inject(plain, FAULTS["output"]):
        loss = plain(x).sum()
    loss.backward()  # Nothing is computed again.


@pytest.mark.parametrize("fault", ["output", "weight"])
@pytest.mark.parametrize("run", ["new", "reentrant"])
def test_forward_before_the_block_is_refused(run: str, fault: str) -> None:
    model, x = Net(RUNS[run]), torch.ones(2, 3, 6, 6, requires_grad=True)
    loss = model(x).sum()
    with (
        pytest.raises(InjectionError, match="no forward pass inside the inject block"),
        rh.inject(model, FAULTS[fault]),
    ):
        loss.backward()


def test_a_functional_call_and_the_whole_model_in_a_checkpoint() -> None:
    results = []
    for run in ("plain", "checkpoint", "functional"):
        model, x = Net(Net.block).eval(), torch.linspace(-1, 1, 216).reshape(2, 3, 6, 6).requires_grad_()
        with rh.inject(model, FAULTS["two"]) as report:
            if run == "plain":
                output = model(x)
            elif run == "checkpoint":
                output = checkpoint(model, x, use_reentrant=True)
            else:
                output = torch.func.functional_call(model, dict(model.named_parameters()), (x,))
            output.square().sum().backward()
        results.append((report.injected, [p.grad for p in model.parameters()], x.grad))
    for injected, weights, inputs in results[1:]:
        assert injected == results[0][0]
        assert torch.equal(inputs, results[0][2])
        assert all(torch.equal(one, other) for one, other in zip(weights, results[0][1], strict=True))
