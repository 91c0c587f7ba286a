"""Export a wrapped classifier to an ONNX file for any batch size, and compare it with ONNX Runtime.

    pip install -e ".[onnx,vision]"
    python examples/export_onnx.py --output model.onnx --fuse    # half a minute

Pass ``--weights`` to export trained weights. The file runs without this library and without PyTorch.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

import resilient_heads as rh


def export(model: nn.Module, example_input: Tensor, output: Path) -> None:
    """Write a model for any number of images; ``example_input`` is a batch of at least two."""
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        model.eval(),
        (example_input,),
        dynamo=True,
        dynamic_shapes=({0: batch},),
        input_names=["images"],
        output_names=["logits"],
        verbose=False,
    )
    assert program is not None
    program.save(output)


def difference(model: nn.Module, images: Tensor, path: Path) -> float:
    """Return the largest difference of logits, PyTorch against ONNX Runtime, as a fraction of the largest logit."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    with torch.inference_mode():
        expected = model.eval()(images).numpy()
    return float(np.abs(logits - expected).max() / np.abs(expected).max())


def main(arguments: Sequence[str] | None = None) -> None:
    """Build, wrap, load, fuse, export, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shufflenet_v2_x0_5", help="any classifier of torchvision")
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--weights", type=Path, help="state dict of the wrapped model, safetensors")
    parser.add_argument("--fuse", action="store_true", help="one layer instead of two")
    parser.add_argument("--output", type=Path, default=Path("model.onnx"))
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    model = rh.wrap_model(torchvision.models.get_model(args.model, num_classes=10), embeddings="digits")
    if args.weights:
        rh.load_checkpoint(model, load_file(args.weights))
    if args.fuse:
        rh.fuse(model)
    export(model, torch.randn(2, 3, args.size, args.size), args.output)
    far = difference(model, torch.randn(7, 3, args.size, args.size), args.output)
    print(f"{args.output}: logits of 7 images differ from PyTorch by {far:.1e} of the largest logit")
    if far > 1e-5:
        raise SystemExit("the difference is above 1e-5")


if __name__ == "__main__":
    main()
