"""Checkpoints as tools write them load rightly, or are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import resilient_heads as rh
from helpers.checkpoints import ENVELOPES, Residual, drawn, once, prefixed, without_counters, write
from helpers.heads import random_embeddings, snapshot
from resilient_heads.errors import ArgumentError, ModelError, ResilientHeadsError


@pytest.fixture
def trained() -> dict[str, Any]:
    """Return weights that no new model has."""
    model = Residual()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(1)
    return snapshot(model)


def check_loads(model: nn.Module, expected: dict[str, Any], checkpoint: Any, **options: Any) -> None:
    """Load a checkpoint, and compare bit for bit."""
    rh.load_checkpoint(model, checkpoint, **options)
    after = model.state_dict()
    assert list(after) == list(expected)
    assert all(torch.equal(after[name], value) for name, value in expected.items())


def check_refused(model: nn.Module, checkpoint: Any, message: str, **options: Any) -> ModelError:
    """Load a checkpoint that is refused; the model stays as it is."""
    before = snapshot(model)
    with pytest.raises(ModelError, match=message) as caught:
        rh.load_checkpoint(model, checkpoint, **options)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert "weights_only" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("envelope", ENVELOPES)
@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "_orig_mod.module.",
        "module.module.",
        "module._orig_mod.",
        "model.",
        "model.net._orig_mod.",
        "a.b.",
    ],
)
def test_weights_load_from_every_envelope_and_prefix(
    trained: dict[str, Any], tmp_path: Path, envelope: str, prefix: str
) -> None:
    write(ENVELOPES[envelope](prefixed(trained, prefix)), tmp_path / "a.pt")
    check_loads(Residual(), trained, tmp_path / "a.pt")


def averaged(state: dict[str, Any]) -> dict[str, Any]:
    model = Residual()
    model.load_state_dict(state)
    average = torch.optim.swa_utils.AveragedModel(torch.compile(model))
    return average.state_dict()


LOADS: dict[str, Any] = {
    "tied tensors once": once,
    "no counters": without_counters,
    "a layer compiled": lambda state: {k.replace("conv.", "conv._orig_mod."): v for k, v in state.items()},
    "a layer compiled, all in DDP": lambda state: {
        "module." + k.replace("conv.", "conv._orig_mod."): v for k, v in state.items()
    },
    "layers in FSDP and checkpointing": lambda state: {
        k.replace("fc.", "_fsdp_wrapped_module.fc._checkpoint_wrapped_module."): v for k, v in state.items()
    },
    "average": averaged,
    "double": lambda state: {k: v.double() if v.is_floating_point() else v for k, v in state.items()},
    "other things beside": lambda state: {**prefixed(state, "model."), "criterion.weight": torch.ones(3)},
    "equal average": lambda state: {"state_dict": state, "state_dict_ema": {k: v.clone() for k, v in state.items()}},
    "optimizer of named parameters": lambda state: {
        "model": state,
        "optimizer": {"state": {k: {"exp_avg": v, "step": torch.tensor(1.0)} for k, v in state.items()}},
    },
    "a counter more": lambda state: {**state, "bn.num_batches_tracked": state["bn.num_batches_tracked"]},
}


@pytest.mark.parametrize("case", LOADS)
@pytest.mark.parametrize("as_file", [False, True])
def test_what_tools_do_to_weights_is_undone(trained: dict[str, Any], tmp_path: Path, case: str, as_file: bool) -> None:
    checkpoint = LOADS[case](trained)
    expected = dict(trained)
    if case == "no counters":
        expected["bn.num_batches_tracked"] = torch.tensor(0)
    if as_file:
        write(checkpoint, tmp_path / "a.pt")
    check_loads(Residual(), expected, tmp_path / "a.pt" if as_file else checkpoint)


def test_half_precision_is_widened_exactly(trained: dict[str, Any]) -> None:
    half = {name: value.half() if value.is_floating_point() else value for name, value in trained.items()}
    check_loads(Residual(), {name: half[name].to(value.dtype) for name, value in trained.items()}, half)


def test_a_counter_of_a_layer_without_one_is_ignored() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in ("weight", "bias", "running_mean", "running_var"):
                self.register_buffer(name, torch.rand(6))

    trained = nn.Sequential(nn.BatchNorm2d(6)).state_dict()
    expected = {name: value for name, value in trained.items() if "num" not in name}
    check_loads(nn.Sequential(Frozen()), expected, trained)


def test_a_compiled_or_distributed_model_takes_the_names_of_a_plain_one(trained: dict[str, Any]) -> None:
    compiled = torch.compile(Residual())
    rh.load_checkpoint(compiled, {"state_dict": prefixed(trained, "module.")})
    assert all(torch.equal(compiled._orig_mod.state_dict()[name], value) for name, value in trained.items())
    part = Residual()
    part.conv = torch.compile(part.conv)
    rh.load_checkpoint(part, trained)
    assert torch.equal(part.conv.weight, trained["conv.weight"])


def test_a_model_with_a_name_that_wrappers_use_keeps_it() -> None:
    """Both names lose the word "module": then no word is removed, and only the prefix counts."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.module = nn.Parameter(torch.rand(3)), nn.Module()
            self.module.weight = nn.Parameter(torch.rand(3))

    source = Odd().state_dict()
    for prefix in ("", "module.", "module.module."):
        check_loads(Odd(), source, prefixed(source, prefix))


def test_another_number_of_classes_is_told_with_what_to_type() -> None:
    check_refused(
        nn.Linear(4, 3), nn.Linear(4, 5).state_dict(), r"weight is \(5, 4\) in .*\(--classes on the command line\)"
    )


def test_weights_and_their_average_must_be_told_apart(trained: dict[str, Any], tmp_path: Path) -> None:
    ema = {name: value + 1 for name, value in trained.items()}
    write({"state_dict": trained, "state_dict_ema": prefixed(ema, "module.")}, tmp_path / "timm.pth")
    path = tmp_path / "timm.pth"
    check_refused(Residual(), path, "several weights of Residual.*: part='state_dict' or 'state_dict_ema.module' ")
    twice = {"model": trained, "ema": {f"module.{name}": value.double() for name, value in ema.items()}}
    check_refused(Residual(), twice, r"part='model' or 'ema\.module'( or 'ema')? \(--part on the command line\)")
    check_loads(Residual(), ema, path, part="state_dict_ema")
    check_loads(Residual(), trained, path, part="state_dict")
    check_refused(Residual(), path, "has no part 'ema' with weights of Residual; found 'state_dict', ", part="ema")
    lightning = {"state_dict": {**prefixed(trained, "student."), **prefixed(ema, "teacher.")}}
    check_refused(Residual(), lightning, "part='state_dict.student' or 'state_dict.teacher'")
    check_loads(Residual(), ema, lightning, part="state_dict.teacher")
    flat = {**trained, **prefixed(ema, "ema.")}
    check_refused(Residual(), flat, "part='' or 'ema'")
    check_loads(Residual(), trained, flat, part="")
    check_refused(Residual(), {**flat, "extra": torch.ones(1)}, "part='ema' or ''")
    broken = {"state_dict": {**trained, "extra": torch.ones(1)}, "state_dict_ema": ema}
    check_refused(Residual(), broken, "part='state_dict_ema' or 'state_dict'")


REFUSED: dict[str, tuple[Any, str]] = {
    "a layer missing": (lambda s: {k: v for k, v in s.items() if "fc" not in k}, r"missing: fc\.weight, fc\.bias\."),
    "a layer more": (lambda s: {**s, "extra.weight": torch.ones(1)}, "unexpected: extra.weight"),
    "a layer more, prefixed": (
        lambda s: prefixed({**s, "extra.weight": torch.ones(1)}, "module."),
        "under 'module'.*unexpected: extra.weight",
    ),
    "other classes": (lambda s: {**s, "fc.bias": torch.ones(7)}, r"fc\.bias is \(7,\) in the checkpoint, \(4,\) in"),
    "another model": (lambda s: {"a.b": torch.ones(1)}, "holds no state dict of Residual; found 'a.b'"),
    "integers": (lambda s: {**s, "fc.bias": torch.ones(4, dtype=torch.int8)}, r"fc\.bias is torch\.int8 in"),
    "complex": (lambda s: {**s, "fc.bias": torch.ones(4, dtype=torch.complex64)}, r"fc\.bias is torch\.complex64"),
    "no values": (
        lambda s: {**s, "fc.bias": torch.ones(4, device="meta")},
        "no values in the checkpoint",
    ),
    "no tensor": (lambda s: {**s, "fc.bias": [1.0, 2.0]}, "fc.bias is a list in the checkpoint, a tensor in the model"),
    "too large": (
        lambda s: {**s, "fc.bias": torch.full((4,), 1e300, dtype=torch.float64)},
        r"fc\.bias has values too large for the model's torch\.float32",
    ),
    "untied": (
        lambda s: {**s, "tied.weight": s["tied.weight"] + 1},
        r"module\.weight and tied\.weight are one tensor in the model, and differ in the checkpoint",
    ),
    "nothing": (lambda s: {}, "found nothing"),
    "optimizer only": (lambda s: {"optimizer": {"state": {0: {"step": torch.tensor(1)}}}}, "found 'optimizer'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_weights_that_are_not_the_models_are_refused(trained: dict[str, Any], case: str) -> None:
    change, message = REFUSED[case]
    check_refused(Residual(), change(trained), message)


def test_heads_are_named_below_a_prefix_too() -> None:
    def wrapped() -> nn.Module:
        return rh.wrap_model(Residual(), embeddings=random_embeddings(4))

    trained = {"state_dict": prefixed(wrapped().state_dict(), "model.module.")}
    check_refused(Residual(), trained, "has a text-guided head at 'fc', the model a plain classifier.*Wrap the model")
    check_refused(wrapped(), prefixed(Residual().state_dict(), "module."), "has a plain classifier at 'fc'")
    model = wrapped()
    rh.load_checkpoint(model, trained)
    assert torch.equal(model.fc.latent.weight, trained["state_dict"]["model.module.fc.latent.weight"])


class Stored(nn.Module):
    """A parameter and a buffer of any dtype."""

    def __init__(self, weight: torch.Tensor, buffer: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.register_buffer("table", buffer)


@pytest.mark.parametrize(
    ("inside", "given"),
    [
        (torch.zeros(2, dtype=torch.float16), torch.tensor([1e30, 1.0], dtype=torch.bfloat16)),
        (torch.zeros(2, dtype=torch.float16), torch.tensor([1e30, 1.0], dtype=torch.float64)),
        (torch.zeros(2, dtype=torch.float8_e4m3fn), torch.tensor([5e4, 1.0]).to(torch.float8_e5m2)),
        (torch.zeros(2, dtype=torch.int8), torch.tensor([300, 1])),
        (torch.zeros(2, dtype=torch.int32), torch.tensor([2**40, 1])),
        (torch.zeros(2, dtype=torch.bool), torch.tensor([3, 1])),
    ],
    ids=lambda value: str(value.dtype),
)
def test_values_too_large_for_the_models_dtype_are_refused(inside: torch.Tensor, given: torch.Tensor) -> None:
    model = Stored(torch.zeros(1), inside)
    with pytest.raises(ModelError, match="table has values too large for the model's torch"):
        rh.load_checkpoint(model, {"weight": torch.ones(1), "table": given})
    assert model.weight.item() == 0


def test_a_tensor_of_another_layout_or_for_a_model_without_memory_is_refused() -> None:
    state = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
    check_refused(nn.Linear(3, 2), state | {"weight": state["weight"].to_sparse()}, "is torch.sparse_coo in the check")
    with pytest.raises(ModelError, match=r"meta device in the model; call model\.to_empty"):
        rh.load_checkpoint(nn.Linear(3, 2, device="meta"), state)


class Counting(nn.Linear):
    """A module with a state beside its tensors."""

    count = 1

    def get_extra_state(self) -> dict[str, int]:
        return {"count": self.count}

    def set_extra_state(self, state: dict[str, int]) -> None:
        if state["count"] < 0:
            raise ValueError("a negative count")
        self.count = state["count"]


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_modules_extra_state_is_loaded(prefix: str) -> None:
    model, saved = nn.Sequential(Counting(3, 2)), nn.Sequential(Counting(3, 2))
    saved[0].count = 7
    rh.load_checkpoint(model, {"state_dict": {prefix + name: value for name, value in saved.state_dict().items()}})
    assert model[0].count == 7
    assert torch.equal(model[0].weight, saved[0].weight)
    saved[0].count = -1
    with pytest.raises(ModelError, match=r"a module refuses its values.*Reason: ValueError: a negative count"):
        rh.load_checkpoint(model, saved.state_dict())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize:UserWarning")
def test_modules_learn_their_version_from_an_envelope() -> None:
    def quantised() -> nn.Module:
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 3)), {nn.Linear})

    model, saved, batch = quantised(), quantised(), torch.randn(5, 4)
    rh.load_checkpoint(model, {"state_dict": saved.state_dict()})
    assert torch.equal(model(batch), saved(batch))


def test_an_interrupt_comes_after_the_last_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    model, saved = (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)) for _ in range(2))
    usual = model[1]._load_from_state_dict

    def interrupted(*arguments: Any) -> None:
        monkeypatch.setattr(model[1], "_load_from_state_dict", usual)
        raise KeyboardInterrupt

    monkeypatch.setattr(model[1], "_load_from_state_dict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rh.load_checkpoint(model, saved.state_dict())
    assert all(torch.equal(value, saved.state_dict()[name]) for name, value in model.state_dict().items())


def test_an_argument_that_is_no_checkpoint_is_refused() -> None:
    with pytest.raises(ArgumentError, match="checkpoint must be a path"):
        rh.load_checkpoint(Residual(), 3)
    with pytest.raises(ArgumentError, match="model must be a Module"):
        rh.load_checkpoint("resnet18", {})


def check_drawn(seed: int, folder: Path) -> bool:
    """Load a checkpoint with drawn hazards: right weights bit for bit, or one of the library's errors."""
    path, right, whole = drawn(seed, folder)
    model = Residual()
    expected, said = snapshot(model), ""
    try:
        rh.load_checkpoint(model, path)
        expected = right
    except ResilientHeadsError as error:
        said = str(error)
    after = model.state_dict()
    assert not (said and whole), f"seed {seed}: {said}"
    assert "\x1b" not in said
    assert "weights_only" not in said
    differing = [name for name, value in expected.items() if not torch.equal(after[name], value)]
    assert not differing, f"seed {seed}: {differing}"
    return not said


def test_drawn_checkpoints_load_rightly_or_are_refused(tmp_path: Path) -> None:
    loaded = sum(check_drawn(seed, tmp_path) for seed in range(50))
    assert 15 <= loaded <= 35


@pytest.mark.slow
def test_a_thousand_drawn_checkpoints_load_rightly_or_are_refused(tmp_path: Path) -> None:
    loaded = sum(check_drawn(seed, tmp_path) for seed in range(50, 1050))
    assert 300 <= loaded <= 700
