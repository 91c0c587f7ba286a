from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

onnx = pytest.importorskip("onnx", reason='needs the extra "onnx"')
pytest.importorskip("onnxscript", reason='needs the extra "onnx"')
pytest.importorskip("onnxruntime", reason='needs the extra "onnx"')


@pytest.mark.filterwarnings("ignore")  # of torch.onnx about itself
def test_onnx_runtime_gives_the_same_logits(
    model: nn.Sequential, example: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    path, script = tmp_path / "model.onnx", example("export_onnx")
    script.export(model, torch.randn(2, 3, 8, 8), path)
    for batch in (1, 2, 7):
        assert script.difference(model, torch.randn(batch, 3, 8, 8), path) < 1e-5
    file = onnx.load(path)
    onnx.checker.check_model(file)
    assert {node.domain for node in file.graph.node} <= {"", "ai.onnx"}  # standard operators only
    shape = file.graph.input[0].type.tensor_type.shape
    assert [dim.dim_param or dim.dim_value for dim in shape.dim] == ["batch", 3, 8, 8]


@pytest.mark.filterwarnings("ignore")
def test_a_planted_difference_is_detected(
    make: Callable[[str], nn.Sequential], example: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    path, script, model = tmp_path / "model.onnx", example("export_onnx"), make("cosine")
    script.export(model, torch.randn(2, 3, 8, 8), path)
    with torch.no_grad():
        model[-1].projection.weight[3] *= 1.001
    assert script.difference(model, torch.randn(7, 3, 8, 8), path) > 1e-5
