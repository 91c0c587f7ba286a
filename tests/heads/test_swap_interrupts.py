"""An interrupt at any line leaves a model as it was, or completely changed."""

import copy
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import resilient_heads as rh
from helpers.heads import random_embeddings
from helpers.interrupts import interrupt_lines
from resilient_heads.errors import ArgumentError, ModelError
from resilient_heads.heads.find.locate import find_heads

EMBEDDINGS = random_embeddings(5)
Change = Callable[[nn.Module], object]


class Two(nn.Module):
    """Two classifiers, hooks, a configuration, frozen layers, modes that differ, and a counter of classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout())
        self.fc, self.second = nn.Linear(8, 5), nn.Linear(8, 5)
        self.num_classes = 5
        self.config = SimpleNamespace(id2label={i: f"l{i}" for i in range(5)}, label2id={f"l{i}": i for i in range(5)})
        self.body[1].eval()
        self.second.requires_grad_(False)
        self.fc.register_forward_hook(_hook)

    def reset_classifier(self, classes: int) -> None:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.fc(x) + self.second(x)


def _hook(*_: object) -> None:
    pass


BOTH = ("fc", "second")


def wrap(model: nn.Module, **options: Any) -> nn.Module:
    return rh.wrap_model(model, embeddings=EMBEDDINGS, classifier=BOTH, **options)


def follows_classes() -> nn.Module:
    """Return a model that cannot have other classes, so that wrapping is undone at its last step."""

    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x).unflatten(-1, (2, -1)).flatten(1)[:, :10]

    return Counts()


def refused(model: nn.Module) -> None:
    with pytest.raises(ModelError, match="depends on their number"):
        rh.wrap_model(model, embeddings=random_embeddings(14), new_classes=True)


CHANGES: dict[str, tuple[Callable[[], nn.Module], Change]] = {
    "wrap": (Two, wrap),
    "wrap from the classifier": (
        Two,
        lambda model: wrap(model, init="from_classifier", example_input=torch.ones(3, 6)),
    ),
    "wrap, refused at the end": (follows_classes, refused),
    "unwrap": (lambda: wrap(Two()), rh.unwrap_model),
    "unwrap to another dtype": (lambda: wrap(Two()).double(), rh.unwrap_model),
    "fuse cosine": (lambda: wrap(Two()), rh.fuse),
    "fuse linear, protected": (lambda: rh.protect_(wrap(Two(), normalize=False), checksum=True), rh.fuse),
    "protect": (lambda: wrap(Two()), lambda model: rh.protect_(model, bounds=True, median=True)),
    "protect plain layers": (Two, lambda model: rh.protect_(model, checksum=True, classifier=BOTH)),
    "unprotect": (lambda: rh.protect_(wrap(Two()), checksum=True), rh.unprotect_),
    "unprotect plain layers": (lambda: rh.protect_(Two(), checksum=True, classifier=BOTH), rh.unprotect_),
    "warm start": (
        lambda: wrap(Two()),
        lambda model: rh.heads.warm_start_(model.fc, model.old, features=torch.ones(3, 8)),
    ),
}


def described(value: object) -> object:
    """Return what two states of an attribute must have in common to be the same."""
    if isinstance(value, Tensor):
        tensor = value.detach()
        return type(value), tensor.dtype, value.requires_grad, tensor.double().flatten().tolist()
    if isinstance(value, nn.Module):
        return state(value)
    if isinstance(value, dict):
        return {str(key): described(item) for key, item in value.items()}
    if isinstance(value, SimpleNamespace):
        return described(vars(value))
    if hasattr(value, "layer") and hasattr(value, "metadata"):
        return state(value.layer), value.metadata
    return value if isinstance(value, int | float | str | tuple | type | None) else type(value)


def state(model: nn.Module) -> dict[str, object]:
    """Return everything about a model: classes, attributes, hooks, modes, flags and bits of all modules."""
    return {
        name: (
            type(module),
            {
                # PyTorch counts hooks, so that their keys differ between copies.
                key: [described(hook) for hook in value.values()] if "hooks" in key else described(value)
                for key, value in vars(module).items()
                if key != "_modules"
            },
        )
        for name, module in model.named_modules(remove_duplicate=False)
    }


def check_interrupts(build: Callable[[], nn.Module], change: Change, **options: Any) -> int:
    """Interrupt a change at lines; compare with the state before, and after a change that nothing interrupts."""
    source = build()
    source.__dict__["old"] = nn.Linear(8, 5)
    current: list[nn.Module] = [source]

    def run() -> None:
        torch.manual_seed(3)
        current[0] = copy.deepcopy(source)
        change(current[0])

    torch.manual_seed(3)
    before = state(copy.deepcopy(source)), torch.random.get_rng_state().tolist()
    run()
    after = state(current[0]), torch.random.get_rng_state().tolist()

    def check() -> None:
        found = state(current[0]), torch.random.get_rng_state().tolist()
        assert found[0] in (before[0], after[0])
        assert found[1] == (after if found[0] == after[0] else before)[1]

    return interrupt_lines(run, check, **options)


@pytest.mark.parametrize("case", CHANGES)
def test_an_interrupt_leaves_a_model_as_it_was_or_changed(case: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    assert check_interrupts(*CHANGES[case], distinct=True, stride=7) > 1


@pytest.mark.slow
@pytest.mark.parametrize("case", CHANGES)
def test_an_interrupt_at_any_line_leaves_a_model_as_it_was_or_changed(case: str) -> None:
    assert check_interrupts(*CHANGES[case], distinct=True) > 20


@pytest.mark.parametrize("lazy", [False, True])
def test_a_head_that_a_user_passes_is_not_half_used(lazy: bool) -> None:
    """A head that is dropped at the last step fits another model as before."""
    head = rh.TextGuidedHead(None if lazy else 6, random_embeddings(14)).double()
    values = [] if lazy else [tensor.clone() for tensor in head.state_dict().values()]
    with pytest.raises(ModelError, match="depends on their number"):
        rh.wrap_model(follows_classes(), head=head, new_classes=True)
    assert head.in_features == (None if lazy else 6)
    assert head.projection.weight.dtype == torch.float64
    assert all(torch.equal(a, b) for a, b in zip(values, head.state_dict().values(), strict=False))
    model = rh.wrap_model(nn.Sequential(nn.Linear(6, 14)).double(), head=head)
    assert list(find_heads(model)) == ["0"]
    assert model(torch.ones(2, 6).double()).shape == (2, 14)


def test_a_protection_without_its_name_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"by name: protect_\(model, checksum=True\); found 'checksum'"):
        rh.protect_(nn.Sequential(nn.Linear(6, 4)), "checksum")  # type: ignore[arg-type]
