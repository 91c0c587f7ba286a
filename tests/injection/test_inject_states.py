"""Random sequences of blocks, mutations, passes and errors leave a model as without faults, or a block's end raises."""

import copy
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from torch import Tensor, nn
from torch.nn.utils import parametrize

import resilient_heads as rh
from resilient_heads.errors import FaultError, InjectionError
from resilient_heads.incremental.recording.words import words


class Net(nn.Module):
    """A convolution, a normalisation and three linear layers, two of which may be tied."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv, self.bn, self.drop = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.0)
            self.fc, self.fc2, self.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.bn.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.bn(self.conv(x))).mean(dim=(2, 3))
        return self.last(self.fc2(self.fc(x)))


class BodyError(RuntimeError):
    """Raised by the body of a block."""


def replace(model: Net) -> None:
    model.fc = nn.Linear(3, 3, dtype=model.last.bias.dtype, device=model.last.bias.device)
    nn.init.constant_(model.fc.weight, 0.5)
    nn.init.constant_(model.fc.bias, 0.5)


def fill(model: Net) -> None:
    with torch.no_grad():
        model.fc.weight.fill_(0.25)


def new_parameter(model: Net) -> None:
    model.fc2.weight = nn.Parameter(torch.full_like(model.fc2.bias, 0.5).repeat(3, 1))


def other_data(model: Net) -> None:
    model.fc.bias.data = torch.zeros_like(model.fc.bias.data)


def same_data(model: Net) -> None:
    model.fc.bias.data = model.fc.bias.data.clone()


def tie(model: Net) -> None:
    model.fc2.bias = model.fc.bias


def parametrised(model: Net) -> None:
    if not parametrize.is_parametrized(model.last):
        parametrize.register_parametrization(model.last, "weight", nn.Identity())


def clear_hooks(model: Net) -> None:
    for module in model.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()


def load_again(model: Net) -> None:
    model.load_state_dict(copy.deepcopy(model.state_dict()))


def assign_again(model: Net) -> None:
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)


def load_other(model: Net) -> None:
    model.load_state_dict({name: torch.zeros_like(value) for name, value in model.state_dict().items()})


def copy_layer(model: Net) -> None:
    model.conv = copy.deepcopy(model.conv)


def switch_mode(model: Net) -> None:
    model.drop.train(not model.drop.training)


def switch_gradients(model: Net) -> None:
    model.conv.weight.requires_grad_(not model.conv.weight.requires_grad)


MUTATIONS: dict[str, Callable[[Net], object]] = {
    "half": lambda model: model.half(),
    "float": lambda model: model.float(),
    "double": lambda model: model.double(),
    "channels_last": lambda model: model.to(memory_format=torch.channels_last),
    "meta": lambda model: model.to("meta"),
    **{
        change.__name__: change  # type: ignore[attr-defined]
        for change in (
            replace,
            fill,
            new_parameter,
            other_data,
            same_data,
            tie,
            parametrised,
            clear_hooks,
            load_again,
            assign_again,
            load_other,
            copy_layer,
            switch_mode,
            switch_gradients,
        )
    },
}

STORED = rh.faults.StoredTensor
FAULTS = [
    rh.WeightBitFlip(layer="conv", index=(0, 1, 2, 0), bit=9),
    rh.WeightBitFlip(layer="fc", index=(1, 2), bit=14),
    rh.WeightBitFlip(layer="fc", index=(1, 2), bit=3),
    rh.WeightBitFlip(layer="fc", index=(1,), bit=10, parameter="bias"),
    rh.WeightBitFlip(layer="fc2", index=(1,), bit=12, parameter="bias"),
    rh.WeightBitFlip(layer="last", index=(0, 1), bit=13),
    rh.Fault(layer="fc*", tensor=STORED(), effect=rh.faults.SetValue(value=0.5), elements=rh.faults.AllElements()),
    rh.Fault(layer="bn", tensor=STORED(name="running_mean"), effect=rh.faults.SetValue(value=float("nan"))),
    rh.Fault(layer="*", tensor=STORED(name="bias"), elements=rh.faults.RandomElements(count=2)),
    rh.Fault(layer="fc"),
    rh.Fault(layer="conv", tensor=rh.faults.Input(), effect=rh.faults.SetValue(value=7.0)),
]


def bits(model: nn.Module) -> dict[str, object]:
    return {
        name: (value.dtype, value.stride(), value.is_meta or words(value).tolist())
        for name, value in model.state_dict().items()
    }


def flags(model: nn.Module) -> dict[str, object]:
    modules = {name: (type(module).__name__, module.training) for name, module in model.named_modules()}
    return modules | {name: parameter.requires_grad for name, parameter in model.named_parameters()}


class Blocks(RuleBasedStateMachine):
    """The model with faults, and a twin that gets the same mutations without faults."""

    def __init__(self) -> None:
        super().__init__()
        self.renew()

    def renew(self) -> None:
        self.model, self.twin = Net(), Net()
        self.blocks: list[ExitStack] = []
        self.reported = False
        self.rng = torch.get_rng_state()

    @rule(faults=st.lists(st.sampled_from(FAULTS), min_size=1, max_size=2, unique_by=id))
    def enter(self, faults: list[rh.Fault]) -> None:
        block = ExitStack()
        try:
            block.enter_context(rh.inject(self.model, faults))
        except (FaultError, InjectionError):
            return
        self.blocks.append(block)

    @rule(name=st.sampled_from(sorted(MUTATIONS)))
    def mutate(self, name: str) -> None:
        if self.twin.last.bias.is_meta:
            return
        for model in (self.model, self.twin):
            with torch.random.fork_rng():
                MUTATIONS[name](model)

    @rule()
    def forward(self) -> None:
        if not self.twin.last.bias.is_meta:
            with torch.no_grad():
                self.model(torch.ones(2, 2, 4, 4, dtype=self.twin.last.bias.dtype))

    @precondition(lambda self: self.blocks)
    @rule(number=st.integers(0, 5), error=st.booleans())
    def leave(self, number: int, error: bool) -> None:
        block = self.blocks.pop(-1 - number % len(self.blocks))
        try:
            with block:
                if error:
                    raise BodyError
        except InjectionError:
            self.reported = True
        except BodyError as raised:
            self.reported |= bool(getattr(raised, "__notes__", ()))

    @invariant()
    def as_without_faults(self) -> None:
        assert torch.equal(self.rng, torch.get_rng_state())
        assert torch.is_grad_enabled()
        assert flags(self.model) == flags(self.twin)
        if self.blocks:
            return
        for module in self.model.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks
            assert not module._forward_pre_hooks_with_kwargs
        if not self.reported:
            assert bits(self.model) == bits(self.twin)
        if self.reported or self.twin.last.bias.is_meta:
            self.renew()

    def teardown(self) -> None:
        while self.blocks:
            self.leave(0, error=True)
        self.as_without_faults()


def explore(examples: int, steps: int) -> None:
    profile = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Blocks, settings=profile)  # type: ignore[no-untyped-call]


def test_some_sequences() -> None:
    explore(30, 12)


@pytest.mark.slow
def test_many_sequences() -> None:
    explore(1000, 25)
