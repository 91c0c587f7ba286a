"""The options that name a model and its images, shared by several commands."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

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
        "--checkpoint", type=Path, help="file of weights: .safetensors, or a pickle, read with weights_only=True"
    )
    model.add_argument("--classes", type=int, help="number of classes in the checkpoint (torchvision, timm)")
    model.add_argument(
        "--wrap", metavar="EMBEDDINGS", help="give the model a text-guided head before the checkpoint is loaded"
    )
    model.add_argument("--device", default="cpu", help="device to run on, such as cuda (default: cpu)")
    data = parser.add_argument_group("images")
    data.add_argument(
        "--data",
        type=Path,
        required=True,
        help="folder with a subfolder for each class, or .npz file with images (N, C, H, W) and labels (N,)",
    )
    data.add_argument("--images", type=int, help="largest number of images, taken at even distances")
    data.add_argument("--resize", type=int, help="length of a picture's shorter side (default: the model's)")
    data.add_argument("--crop", type=int, help="side of the square that is cut from a picture's centre")
    data.add_argument("--mean", type=float, nargs="+", help="mean of each channel, for values in [0, 1]")
    data.add_argument("--std", type=float, nargs="+", help="standard deviation of each channel")


def load_model(arguments: argparse.Namespace) -> tuple["nn.Module", "Preprocessing"]:
    """Return the model with its weights, on its device, and its preprocessing of pictures."""
    # torch takes seconds: --help must not wait for it
    from resilient_heads.evaluation import usable_device
    from resilient_heads.heads.swap.checkpoint import load_checkpoint
    from resilient_heads.inputs.checkpoints import read_checkpoint
    from resilient_heads.inputs.models import named_model
    from resilient_heads.inputs.preprocessing import preprocessing_from

    device = usable_device(arguments.device)
    named = named_model(arguments.model, pretrained=arguments.checkpoint is None, classes=arguments.classes)
    if arguments.wrap is not None:
        _wrap(named.model, arguments.wrap)
    if arguments.checkpoint is not None:
        load_checkpoint(named.model, read_checkpoint(arguments.checkpoint))
    chosen = preprocessing_from(resize=arguments.resize, crop=arguments.crop, mean=arguments.mean, std=arguments.std)
    return named.model.to(device).eval(), chosen or named.preprocessing


def load_images(path: Path, preprocessing: "Preprocessing", arguments: argparse.Namespace) -> tuple["Tensor", "Tensor"]:
    """Return images ``(N, C, H, W)`` and labels ``(N,)``."""
    from resilient_heads.inputs.images import read_images

    return read_images(path, preprocessing, most=arguments.images)


def _wrap(model: "nn.Module", embeddings: str) -> None:
    """Give a model a text-guided head, in place; ``embeddings`` is a file or the name of prebuilt embeddings."""
    from resilient_heads.heads.swap.wrap import wrap_model
    from resilient_heads.text.embeddings import ClassEmbeddings

    wrap_model(model, embeddings=ClassEmbeddings.load(embeddings) if Path(embeddings).is_file() else embeddings)
