"""Quantise a trained text-guided classifier to int8 with torchao: fuse first, then quantise.

    pip install -e ".[recipes,demo]"
    python examples/quantize.py    # half a minute

The other order is an error, because the product of two quantised layers has no exact weights.
"""

import argparse
import copy
from collections.abc import Sequence

import torch
import torchvision
from torch import nn
from torch.utils.data import TensorDataset
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

import resilient_heads as rh
from resilient_heads.demo import digits, train

SCHEMES = {"weights": Int8WeightOnlyConfig, "weights and activations": Int8DynamicActivationInt8WeightConfig}


def quantized(model: nn.Module, scheme: str) -> nn.Module:
    """Return a fused copy of a wrapped model whose linear layers are int8."""
    small = rh.fuse(copy.deepcopy(model))
    quantize_(small, SCHEMES[scheme]())
    return small


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, quantise, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--images", type=int, default=1347, help="how many of the training images to use")
    args = parser.parse_args(arguments)
    train_set, test_set = digits(seed=0)
    few = TensorDataset(*(tensor[: args.images] for tensor in train_set.tensors))
    torch.manual_seed(0)
    model = rh.wrap_model(torchvision.models.shufflenet_v2_x0_5(num_classes=10), embeddings="digits")
    train(model, few, seed=0, epochs=args.epochs, device="cpu", label="shufflenet")
    images, labels = test_set.tensors
    with torch.inference_mode():
        golden = model(images).argmax(dim=1)
        print(f"float32: accuracy {float((golden == labels).float().mean()):.1%}")
        for scheme in SCHEMES:
            decisions = quantized(model, scheme)(images).argmax(dim=1)
            kept, right = (float((decisions == other).float().mean()) for other in (golden, labels))
            print(f"int8 {scheme}: accuracy {right:.1%}, {kept:.1%} of the decisions kept")


if __name__ == "__main__":
    main()
