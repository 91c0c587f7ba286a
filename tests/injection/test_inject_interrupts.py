"""An interrupt at any line of inject and emulate leaves weights, buffers, hooks, modes, flags and RNG as before."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import resilient_heads as rh
from helpers.interrupts import interrupt_lines
from resilient_heads.errors import InjectionError
from resilient_heads.incremental.recording.words import words

WEIGHTS = [
    rh.WeightBitFlip(layer="conv1", index=(0, 0, 0, 0), bit=30),
    rh.Fault(layer="fc", tensor=rh.faults.StoredTensor(name=None), elements=rh.faults.RandomElements(count=2)),
    rh.Fault(layer="bn", tensor=rh.faults.StoredTensor(name="running_mean"), effect=rh.faults.SetValue(value=3.0)),
]
PASSING = [
    rh.BitFlip(layer="conv2", neuron=(0, 0, 0), bit=30),
    rh.Fault(layer="bn", tensor=rh.faults.Input(), elements=rh.faults.RandomElements(count=2)),
    rh.Fault(layer="fc", effect=rh.faults.RandomValue(low=0, high=1)),
]
X = torch.linspace(-1, 1, 2 * 3 * 4 * 4).reshape(2, 3, 4, 4)


def state_of(model: nn.Module) -> dict[str, Any]:
    """Return everything that a block could leave changed, as plain values."""
    tensors = {name: words(value).numpy().tobytes() for name, value in model.state_dict().items()}
    places = {name: (value.data_ptr(), value.stride(), value.dtype) for name, value in model.state_dict().items()}
    hooks = {
        name: [
            list(table)
            for table in (
                module._forward_hooks,
                module._forward_pre_hooks,
                module._forward_pre_hooks_with_kwargs,
                module._forward_hooks_with_kwargs,
                module._forward_hooks_always_called,
            )
        ]
        for name, module in model.named_modules()
    }
    return {
        "tensors": tensors,
        "places": places,
        "hooks": hooks,
        "modes": [module.training for module in model.modules()],
        "flags": [parameter.requires_grad for parameter in model.parameters()],
        "rng": torch.get_rng_state().numpy().tobytes(),
        "gradients": torch.is_grad_enabled(),
    }


def weights(model: nn.Module) -> None:
    with rh.inject(model, WEIGHTS):
        pass


def moved(model: nn.Module) -> None:
    copied = copy.deepcopy(model)
    with rh.inject(copied, WEIGHTS[:1]):
        copied.double()
    assert torch.equal(copied.get_parameter("conv1.weight"), model.get_parameter("conv1.weight").double())


def passing(model: nn.Module) -> None:
    with rh.inject(model, PASSING), torch.no_grad():
        model(X)


def both(model: nn.Module) -> None:
    with rh.inject(model, [WEIGHTS[0], PASSING[0]]), rh.inject(model, WEIGHTS[0]), torch.no_grad():
        model(X)


def training(model: nn.Module) -> None:
    with rh.inject(model, PASSING):
        loss = checkpoint(model, X, use_reentrant=False).sum()
        loss.backward()
    model.zero_grad()


def emulated(model: nn.Module) -> None:
    with rh.emulate(model, rh.formats.FixedPoint(integer_bits=4, fraction_bits=4)), torch.no_grad():
        model(X)


RUNS = {run.__name__: run for run in (weights, moved, passing, both, training, emulated)}


def interrupted(small_net: nn.Module, run: str, **options: Any) -> int:
    small_net.eval()
    small_net.bn.train(mode=False)
    small_net.fc.weight.requires_grad_(False)
    small_net.register_forward_hook(lambda _module, _inputs, output: output)
    before = state_of(small_net)

    def check() -> None:
        after = state_of(small_net)
        for name, value in before.items():
            assert after[name] == value, name

    return interrupt_lines(lambda: RUNS[run](small_net), check, **options)


@pytest.mark.parametrize("run", RUNS)
def test_an_interrupt_at_one_time_of_each_line(small_net: nn.Module, run: str) -> None:
    assert interrupted(small_net, run, distinct=True, stride=2) > 40


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_an_interrupt_at_every_line(small_net: nn.Module, run: str) -> None:
    assert interrupted(small_net, run) > 100


def test_copies_of_a_model_made_inside_the_block_are_free_of_passing_faults_after_it(small_net: nn.Module) -> None:
    small_net.eval()
    golden = small_net(X)
    with rh.inject(small_net, PASSING[0]):
        faulty = small_net(X)
        copied, pickled = copy.deepcopy(small_net), pickle.loads(pickle.dumps(small_net))
        assert torch.equal(words(copied(X)), words(faulty))
    assert not torch.equal(faulty, golden)
    assert torch.equal(copied(X), golden)
    assert torch.equal(pickled(X), golden)


def run_and(model: nn.Module, change: Callable[[nn.Module], None], fault: rh.Fault | rh.BitFlip) -> None:
    with rh.inject(model, fault):
        model(X)
        change(model)


def clear(model: nn.Module) -> None:
    model.conv2._forward_hooks.clear()
    model.bn._forward_pre_hooks.clear()


def replace(model: nn.Module) -> None:
    model.conv2, model.bn = copy.deepcopy(model.conv2), copy.deepcopy(model.bn)


@pytest.mark.parametrize("change", [clear, replace])
@pytest.mark.parametrize(
    ("fault", "what"),
    [(PASSING[0], "The output of 'conv2'"), (PASSING[1], "The input of 'bn'")],
    ids=["output", "input"],
)
def test_cleared_hooks_and_replaced_layers_are_noticed(
    small_net: nn.Module, change: Callable[[nn.Module], None], fault: rh.Fault, what: str
) -> None:
    before = state_of(small_net.eval())
    with pytest.raises(InjectionError, match=f"{what} lost its fault inside the inject block"):
        run_and(small_net, change, fault)
    assert state_of(small_net)["hooks"] == before["hooks"]


def test_a_copy_made_after_hooks_were_cleared_keeps_no_flag_of_them(small_net: nn.Module) -> None:
    def clear_and_copy() -> None:
        small_net.conv2._forward_pre_hooks.clear()
        small_net.conv2 = copy.deepcopy(small_net.conv2)

    with pytest.raises(InjectionError, match="input of 'conv2'"):
        run_and(small_net, lambda _: clear_and_copy(), rh.Fault(layer="conv2", tensor=rh.faults.Input()))
    assert not small_net.conv2._forward_pre_hooks_with_kwargs
