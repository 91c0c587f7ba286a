"""The scripts of examples/ train, stop, resume, and exclude the head's scale from weight decay."""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import resilient_heads as rh
from resilient_heads.errors import ModelError
from resilient_heads.heads.find.locate import find_heads

Load = Callable[[str], ModuleType]
NEEDS = {
    "train_torchvision": ("torchvision", "sklearn"),
    "train_timm": ("timm", "sklearn"),
    "train_transformers": ("transformers", "accelerate", "sklearn"),
    "train_lightning": ("lightning", "torchvision", "sklearn"),
    "train_accelerate": ("accelerate", "torchvision", "sklearn"),
    "train_distributed": ("sklearn",),
    "export_onnx": ("onnx", "onnxscript", "onnxruntime", "torchvision"),
    "quantize": ("torchao", "torchvision", "sklearn"),
}
EXAMPLES = Path(__file__).parents[2] / "examples"


def test_every_script_of_this_kind_is_known() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} - {"ablation", "protected_head"} == set(NEEDS)


@pytest.fixture
def script(example: Load) -> Load:
    """Load an example; skip the test if a package that it needs is not installed."""

    def load(name: str) -> ModuleType:
        for package in NEEDS[name]:
            pytest.importorskip(package, reason=f"{package} is not installed; see the example's first lines")
        return example(name)

    return load


@pytest.fixture
def digits() -> TensorDataset:
    """Sixty-four random images in place of the digits."""
    return TensorDataset(torch.randn(64, 3, 32, 32), torch.arange(64) % 10)


def decay_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, float]:
    """Return the weight decay of each parameter by name; every parameter must be there once."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [(names[id(p)], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]]
    assert len(found) == len(names)
    return dict(found)


def check_decay(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    decay = decay_of(optimizer, model)
    (head,) = find_heads(model)
    assert decay[f"{head}.latent.weight"] == decay[f"{head}.projection.weight"] > 0
    assert decay[f"{head}.latent.bias"] == decay[f"{head}.logit_scale"] == 0


def same(first: nn.Module, second: nn.Module) -> bool:
    state = second.state_dict()
    return all(torch.equal(tensor, state[name]) for name, tensor in first.state_dict().items())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NEEDS)
def test_every_script_explains_itself(
    name: str, script: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = script(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert stopped.value.code == 0
    assert module.__doc__.splitlines()[0] in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "model", "last"),
    [("train_torchvision", "shufflenet_v2_x0_5", ""), ("train_timm", "test_vit", "last.pth.tar")],
)
def test_training_resumes_with_the_same_bits(
    name: str, model: str, last: str, script: Load, digits: TensorDataset, tmp_path: Path
) -> None:
    """Two epochs in one run give the same bits as one epoch, a checkpoint, and a second epoch from it."""
    module, place = script(name), tmp_path / "run"
    saving = {"output" if last else "checkpoint": place}
    complete = module.build(model, epochs=2)
    start = copy.deepcopy(complete.model)
    module.train(complete, digits, epochs=2, batch=32)
    module.train(module.build(model, epochs=2), digits, epochs=1, batch=32, **saving)
    again = module.build(model, epochs=2, seed=99)
    assert not same(again.model, start)
    resume = module.resume if last else module.Run.resume
    resume(again, place / last)
    assert again.epoch == 1
    module.train(again, digits, epochs=2, batch=32)
    assert same(again.model, complete.model)
    assert same(getattr(again.average, "module", again.average), getattr(complete.average, "module", complete.average))
    assert not same(complete.model, start)
    assert rh.is_wrapped(again.average)
    check_decay(complete.optimizer, complete.model)

    stock = module.build(model, epochs=2)
    rh.unwrap_model(stock.model)
    before = copy.deepcopy(stock.model)
    with pytest.raises(ModelError, match="has a text-guided head"):
        resume(stock, place / last)
    assert same(stock.model, before)


@pytest.mark.filterwarnings("ignore")
def test_timm_gives_the_head_the_full_rate(script: Load) -> None:
    """With layer decay, the head is in the deepest group of every model."""
    module = script("train_timm")
    for name in ("test_vit", "test_resnet", "test_efficientnet"):
        run = module.build(name, epochs=1)
        head = {id(parameter) for parameter in run.model.get_classifier().parameters()}
        scales = {group["lr_scale"] for group in run.optimizer.param_groups if head & {id(p) for p in group["params"]}}
        assert scales == {1.0}
        assert min(group["lr_scale"] for group in run.optimizer.param_groups) < 0.5


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_saves_loads_and_resumes(script: Load, digits: TensorDataset, tmp_path: Path) -> None:
    module = script("train_transformers")
    data = module.Named(digits)
    complete = module.trainer(module.build(), data, epochs=2, output=tmp_path / "whole")
    complete.train()
    module.trainer(module.build(), data, epochs=2, output=tmp_path / "part").train()
    again = module.trainer(module.build(seed=99), data, epochs=2, output=tmp_path / "part")
    again.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-1"))
    assert same(again.model, complete.model)
    check_decay(complete.optimizer, complete.model)

    complete.save_model(str(tmp_path / "final"))
    trained = module.TextGuidedConvNext.from_pretrained(tmp_path / "final").eval()
    assert same(trained, complete.model)
    assert trained.config.id2label[3] == "three"
    images = digits.tensors[0][:2]
    assert torch.equal(trained(images).logits, complete.model.eval()(images).logits)


@pytest.mark.filterwarnings("ignore")
def test_a_stock_transformers_model_gets_a_head_that_starts_at_its_text(script: Load, tmp_path: Path) -> None:
    """transformers initialises what the checkpoint lacks; the head's rows and scale must start at the text."""
    module = script("train_transformers")
    torch.manual_seed(7)
    config = module.ConvNextConfig(image_size=32, num_labels=10, **module.TINY)
    stock = module.ConvNextForImageClassification(config)
    stock.save_pretrained(tmp_path)
    model = module.TextGuidedConvNext.from_pretrained(tmp_path)
    fresh = module.build().classifier
    assert torch.equal(model.classifier.projection.weight, fresh.projection.weight)
    assert torch.equal(model.classifier.logit_scale, fresh.logit_scale)
    assert same(model.convnext, stock.convnext)


@pytest.mark.filterwarnings("ignore")
def test_lightning_saves_loads_and_resumes(script: Load, digits: TensorDataset, tmp_path: Path) -> None:
    module = script("train_lightning")
    classifier = module.Classifier(weight_decay=0.1)
    check_decay(classifier.configure_optimizers(), classifier)
    start = copy.deepcopy(classifier)
    last = module.train(classifier, digits, epochs=1, output=tmp_path)
    loaded = module.Classifier.load_from_checkpoint(last)
    assert same(loaded, classifier)
    assert not same(loaded, start)
    assert loaded.hparams.weight_decay == 0.1
    module.train(module.Classifier(), digits, epochs=2, output=tmp_path)
    assert torch.load(last, weights_only=False)["epoch"] == 1


@pytest.mark.filterwarnings("ignore")
def test_accelerate_resumes_with_the_same_bits(script: Load, digits: TensorDataset, tmp_path: Path) -> None:
    module = script("train_accelerate")
    complete = module.Run()
    start = copy.deepcopy(complete.model)
    complete.train(digits, epochs=2, batch=32, output=tmp_path / "whole")
    module.Run().train(digits, epochs=1, batch=32, output=tmp_path / "part")
    again = module.Run(seed=99)
    again.train(digits, epochs=2, batch=32, output=tmp_path / "part")
    assert same(again.model, complete.model)
    assert not same(complete.model, start)
    check_decay(complete.optimizer.optimizer, complete.model)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    ["train_torchvision", "train_timm", "train_transformers", "train_lightning", "train_accelerate", "quantize"],
)
def test_the_scripts_run(name: str, script: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, list[Any]] = {"train_torchvision": ["--checkpoint", tmp_path / "c"], "quantize": []}
    words = ["--epochs", 1, "--images", 128, *options.get(name, ["--output", tmp_path / "out"])]
    script(name).main([str(word) for word in words])
    assert "accuracy" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_export_script_runs(script: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script("export_onnx").main(["--fuse", "--output", str(tmp_path / "m.onnx")])
    assert "of the largest logit" in capsys.readouterr().out
