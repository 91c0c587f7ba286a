"""Models that are compiled, exported or scripted, as a whole or in parts."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import resilient_heads as rh
from helpers.small_net import IMAGES, LABELS, SmallNet, require_same_trials, small_campaign
from resilient_heads.errors import ArgumentError, FaultError, ModelError
from resilient_heads.evaluation import evaluating, uncompiled
from resilient_heads.heads.cost import count_flops

FLIP = rh.BitFlip(layer="conv1", neuron=(0, 0, 0), bit=30)


def compile_in_place(model: nn.Module) -> None:
    model.compile(backend="eager")


def compile_layer(model: nn.Module) -> None:
    model.conv1.compile(backend="eager")


def compile_forward(model: nn.Module) -> None:
    model.forward = torch.compile(model.forward, backend="eager")


def compile_function(model: nn.Module) -> None:
    model.middle = torch.compile(lambda x: x * 1.0, backend="eager")


def disable_a_part(model: nn.Module) -> None:
    model.conv2.forward = torch.compiler.disable(model.conv2.forward)
    compile_in_place(model)


COMPILED = [compile_in_place, compile_layer, compile_forward, compile_function, disable_a_part]


@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
@pytest.mark.parametrize("wrap", COMPILED, ids=lambda wrap: wrap.__name__)
def test_compiled_parts_run_uncompiled_in_a_campaign(wrap: Callable[[nn.Module], None], used: bool) -> None:
    model = SmallNet()
    wrap(model)
    with torch.no_grad():
        before = model(IMAGES) if used else None
        require_same_trials(model)
        assert before is None or torch.equal(model(IMAGES), before)


def test_a_compiled_submodule_keeps_its_sites() -> None:
    model = SmallNet()
    model.conv1 = torch.compile(model.conv1, backend="eager")
    with torch.no_grad():
        model(IMAGES)
    sites = [site.name for site in small_campaign(model).sites]
    assert sites == ["conv1._orig_mod", "conv2", "fc"]


def test_the_switch_that_turns_compilation_off_is_shared() -> None:
    torch.compile(lambda x: x, backend="eager")
    frames: list[object] = []
    compiled = torch.compile(lambda x: x + 1, backend=lambda graph, _: frames.append(graph) or graph.forward)
    one, other = uncompiled(), uncompiled()
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    compiled(torch.ones(2))
    assert not frames
    other.__exit__(None, None, None)
    compiled(torch.ones(2))
    assert frames


def exported() -> torch.export.ExportedProgram:
    size = torch.export.Dim("size", min=1, max=64)
    return torch.export.export(SmallNet(), (IMAGES[:8],), dynamic_shapes=({0: size},))


class Backbone(nn.Module):
    """A part that the library cannot look into, and a layer behind it."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part
        self.fc = nn.Linear(5, 5)
        with torch.no_grad():
            self.fc.weight.copy_(torch.eye(5) + 0.01)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.part(x))


WHOLE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "compiled": (lambda: torch.compile(SmallNet(), backend="eager"), r"is compiled, .*pass model\._orig_mod"),
    "exported": (
        lambda: exported().module(),
        r"exported program \(torch\.export\), .*pass the module it was",
    ),
    "traced": (lambda: torch.jit.trace(SmallNet(), IMAGES), "is TorchScript, .*pass the module it was made from"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", WHOLE)
def test_a_model_that_is_opaque_as_a_whole_is_refused(kind: str) -> None:
    make, message = WHOLE[kind]
    model = make()
    calls: list[Callable[[], object]] = [
        lambda: small_campaign(model),
        lambda: rh.find_sites(model, IMAGES),
        lambda: rh.run_exhaustive(model, (IMAGES, LABELS), progress=False),
    ]
    for call in calls:
        with pytest.raises(ModelError, match=message):
            call()


def test_the_operations_of_an_exported_program_can_be_counted() -> None:
    assert count_flops(exported().module(), IMAGES[:1]) == count_flops(SmallNet(), IMAGES[:1])


def test_an_exported_program_has_no_evaluation_mode_to_restore() -> None:
    model = Backbone(exported().module())
    modes = [module.training for module in model.modules()]
    with evaluating(model):
        assert not model.training
        assert not model.fc.training
    assert [module.training for module in model.modules()] == modes
    with torch.no_grad():
        labels = model(IMAGES).argmax(dim=1)
    result = small_campaign(model, (IMAGES, labels))
    assert [site.name for site in result.sites] == ["fc"]
    assert "part" in str(result.record.coverage)


def test_unflattened_programs_have_modules_but_no_layers() -> None:
    model = torch.export.unflatten(exported())
    with pytest.raises(FaultError, match=r"no fault site: it has no layer\. Name other modules in modules="):
        small_campaign(model)
    assert [site.name for site in small_campaign(model, modules=["conv*", "fc"]).sites] == ["conv1", "conv2", "fc"]


def test_weight_faults_reach_an_exported_program() -> None:
    model = exported().module()
    golden = model(IMAGES)
    fault = rh.WeightBitFlip(layer="fc", index=(0, 0), bit=30)
    plain = SmallNet()
    with rh.inject(model, fault), rh.inject(plain, fault):
        assert torch.allclose(model(IMAGES), plain(IMAGES))
        assert not torch.equal(model(IMAGES), golden)
    assert torch.equal(model(IMAGES), golden)


def test_a_symbolic_trace_runs_its_modules() -> None:
    require_same_trials(torch.fx.symbolic_trace(SmallNet()))


def test_what_is_no_module_is_refused_by_every_call() -> None:
    model = SmallNet()
    nothing: dict[str, tuple[Any, str]] = {
        "function": (lambda x: model(x), "found function: no fault reaches its layers. Pass the torch.nn.Module"),
        "partial": (functools.partial(model), "found partial: no fault reaches"),
        "program": (exported(), "found ExportedProgram: no fault reaches"),
        "class": (SmallNet, r"found the class; pass an object, SmallNet\("),
        "name": ("resnet18", 'such as torchvision.*; found "resnet18"'),
        "none": (None, "found None"),
    }
    calls: list[Callable[[Any], object]] = [
        small_campaign,
        lambda value: rh.find_sites(value, IMAGES),
        lambda value: rh.run_exhaustive(value, (IMAGES, LABELS), progress=False),
        lambda value: rh.wrap_model(value, embeddings="cifar10"),
        lambda value: count_flops(value, IMAGES),
        lambda value: rh.inject(value, FLIP).__enter__(),
    ]
    for value, message in nothing.values():
        for call in calls:
            with pytest.raises(ArgumentError, match=f"model must be a Module, .*{message}"):
                call(value)


def test_a_model_whose_eval_raises_is_named() -> None:
    class Stubborn(SmallNet):
        def train(self, mode: bool = True) -> "Stubborn":
            if not mode and hasattr(self, "ready"):
                raise TypeError("train() takes no mode")
            return super().train(mode)

    model = Stubborn().train()
    model.ready = True
    with pytest.raises(ModelError, match=r"eval\(\) of Stubborn raised an error\. TypeError: train\(\) takes no mode"):
        small_campaign(model)
    assert model.training
