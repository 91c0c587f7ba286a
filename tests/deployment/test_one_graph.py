"""Whole models compiled, exported and traced; `tests/heads/test_text_guided.py` does the same for heads alone."""

import io
import shutil
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import resilient_heads as rh

BATCHES = (2, 7)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch.compiler.reset()


def gradients(model: nn.Module, call: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(6, 3, 8, 8, generator=generator)
    labels = torch.randint(10, (6,), generator=generator)
    model.zero_grad()
    cross_entropy(call(images), labels).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_a_model_compiles_to_one_graph_for_training_and_inference(model: nn.Sequential) -> None:
    """aot_eager traces and differentiates as inductor does, and needs no C compiler."""
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    for batch in BATCHES:
        images = torch.randn(batch, 3, 8, 8)
        torch.testing.assert_close(compiled(images), model(images))
    torch.testing.assert_close(gradients(model, compiled), gradients(model, model))


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="inductor needs a C compiler")
def test_inductor_gives_the_same_logits(make: Callable[[str], nn.Sequential]) -> None:
    model, images = make("cosine"), torch.randn(3, 3, 8, 8)
    compiled = torch.compile(model, fullgraph=True)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(images), model(images))


def test_a_compiled_model_notices_that_it_was_fused_and_unwrapped(make: Callable[[str], nn.Sequential]) -> None:
    model, images = make("cosine"), torch.randn(3, 3, 8, 8)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    golden = compiled(images)
    rh.fuse(model)
    torch.testing.assert_close(compiled(images), golden)
    rh.unwrap_model(model)
    assert torch.equal(compiled(images), model(images))
    assert (model(images) - golden).abs().max() > 0.1


def test_exports_with_any_batch_size_and_comes_back_from_a_file(model: nn.Sequential) -> None:
    program = torch.export.export(model, (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for batch in BATCHES:
        images = torch.randn(batch, 3, 8, 8)
        torch.testing.assert_close(loaded(images), model(images))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_traces_to_torchscript_and_comes_back_from_a_file(model: nn.Sequential) -> None:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, torch.randn(2, 3, 8, 8)), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    for batch in BATCHES:
        images = torch.randn(batch, 3, 8, 8)
        torch.testing.assert_close(loaded(images), model(images))
