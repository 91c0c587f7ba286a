"""The options that name a model and its images, shared by several commands."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import resilient_heads as rh

if TYPE_CHECKING:
    from torch import Tensor, nn

    from resilient_heads.inputs.preprocessing import Preprocessing


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model",
        required=True,
        help="torchvision:NAME, timm:NAME, hf:FOLDER, or file.py:factory, which runs the file and calls factory()",
    )
    model.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="file of weights: .safetensors, or a pickle, read with weights_only=True",
    )
    model.add_argument(
        "--classes", type=int, metavar="N", help="number of classes in the checkpoint (torchvision, timm)"
    )
    model.add_argument(
        "--wrap",
        metavar="EMBEDDINGS",
        help="give the model a text-guided head before the checkpoint is loaded: a name such as cifar10, or a file",
    )
    model.add_argument("--device", default="cpu", help="device to run on, such as cuda (default: cpu)")
    data = parser.add_argument_group("images")
    data.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        required=True,
        help="folder with a subfolder for each class, or .npz file with images (N, C, H, W) and labels (N,)",
    )
    data.add_argument(
        "--images", type=int, metavar="N", help="use only N images, taken at even distances (default: all)"
    )
    data.add_argument(
        "--resize", type=int, metavar="PIXELS", help="length of an image's shorter side (default: the model's)"
    )
    data.add_argument(
        "--crop", type=int, metavar="PIXELS", help="side of the square that is cut from an image's centre"
    )
    data.add_argument("--mean", type=float, nargs="+", metavar="X", help="mean of each channel, for values in [0, 1]")
    data.add_argument("--std", type=float, nargs="+", metavar="X", help="standard deviation of each channel")


def load_model(arguments: argparse.Namespace) -> tuple["nn.Module", "Preprocessing"]:
    """Return the model with its weights, on its device, and its preprocessing of images."""
    # torch takes seconds: --help must not wait for it
    from resilient_heads.evaluation import usable_device
    from resilient_heads.inputs.checkpoints import read_checkpoint
    from resilient_heads.inputs.models import named_model
    from resilient_heads.inputs.preprocessing import preprocessing_from

    device = usable_device(arguments.device)
    model, preprocessing = named_model(
        arguments.model, pretrained=arguments.checkpoint is None, classes=arguments.classes
    )
    if arguments.wrap is not None:
        is_file = Path(arguments.wrap).is_file()
        rh.wrap_model(model, embeddings=rh.ClassEmbeddings.load(arguments.wrap) if is_file else arguments.wrap)
    if arguments.checkpoint is not None:
        rh.load_checkpoint(model, read_checkpoint(arguments.checkpoint))
    chosen = preprocessing_from(resize=arguments.resize, crop=arguments.crop, mean=arguments.mean, std=arguments.std)
    return model.to(device).eval(), chosen or preprocessing


def load_images(path: Path, preprocessing: "Preprocessing", arguments: argparse.Namespace) -> tuple["Tensor", "Tensor"]:
    """Return images ``(N, C, H, W)`` and labels ``(N,)``."""
    from resilient_heads.inputs.images import read_images

    return read_images(path, preprocessing, most=arguments.images)
