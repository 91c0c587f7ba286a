"""A wrapped classifier as an ONNX file that takes any batch size, checked against ONNX Runtime.

    pip install -e ".[onnx,vision]"
    python examples/export_onnx.py --output model.onnx --fuse    # half a minute

Give ``--weights`` to export trained ones. The file needs neither this library nor PyTorch to run.
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
from resilient_heads.heads.swap.checkpoint import load_checkpoint


def export(model: nn.Module, sample: Tensor, output: Path) -> None:
    """Write a model; only the number of images stays open. Give a sample of at least two images."""
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        model.eval(),
        (sample,),
        dynamo=True,
        dynamic_shapes=({0: batch},),
        input_names=["images"],
        output_names=["logits"],
        verbose=False,
    )
    assert program is not None
    program.save(output)


def difference(model: nn.Module, images: Tensor, path: Path) -> float:
    """Return the largest difference of logits, PyTorch against ONNX Runtime, as a share of the largest logit."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"images": images.numpy()})
    with torch.inference_mode():
        expected = model.eval()(images).numpy()
    return float(np.abs(found - expected).max() / np.abs(expected).max())


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
        load_checkpoint(model, load_file(args.weights))
    if args.fuse:
        rh.fuse(model)
    export(model, torch.randn(2, 3, args.size, args.size), args.output)
    far = difference(model, torch.randn(7, 3, args.size, args.size), args.output)
    print(f"{args.output}: {far:.1e} of the largest logit from PyTorch on 7 images")
    if far > 1e-5:
        raise SystemExit("that is too far")


if __name__ == "__main__":
    main()
