"""The options by which commands name a model and its images, and what they stand for."""

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
    model.add_argument("--checkpoint", type=Path, help="weights: .safetensors, or pickle read with weights_only")
    model.add_argument("--classes", type=int, help="number of classes of the checkpoint (torchvision, timm)")
    model.add_argument(
        "--wrap", metavar="EMBEDDINGS", help="give the model a text-guided head before the checkpoint is loaded"
    )
    model.add_argument("--device", default="cpu", help="where to run, such as cuda (default: cpu)")
    data = parser.add_argument_group("images")
    data.add_argument(
        "--data",
        type=Path,
        required=True,
        help="folder with a subfolder for each class, or .npz with images (N, C, H, W) and labels (N,)",
    )
    data.add_argument("--images", type=int, help="take so many at most, evenly spaced")
    data.add_argument("--resize", type=int, help="length of a picture's shorter side; default: the model's own")
    data.add_argument("--crop", type=int, help="side of the square in a picture's middle")
    data.add_argument("--mean", type=float, nargs="+", help="of each channel, of values in [0, 1]")
    data.add_argument("--std", type=float, nargs="+", help="of each channel")


def load_model(arguments: argparse.Namespace) -> tuple["nn.Module", "Preprocessing"]:
    """Return the model, with its weights and on its device, and how it wants its pictures."""
    # torch takes seconds: --help must not wait for it
    from resilient_heads.evaluation import usable_device
    from resilient_heads.heads.swap.checkpoint import load_checkpoint
    from resilient_heads.inputs.checkpoints import read_checkpoint
    from resilient_heads.inputs.models import named_model
    from resilient_heads.inputs.preprocessing import preprocessing_from

    device = usable_device(arguments.device)
    found = named_model(arguments.model, pretrained=arguments.checkpoint is None, classes=arguments.classes)
    if arguments.wrap is not None:
        _wrap(found.model, arguments.wrap)
    if arguments.checkpoint is not None:
        load_checkpoint(found.model, read_checkpoint(arguments.checkpoint))
    own = preprocessing_from(resize=arguments.resize, crop=arguments.crop, mean=arguments.mean, std=arguments.std)
    return found.model.to(device).eval(), own or found.preprocessing


def load_images(path: Path, preprocessing: "Preprocessing", arguments: argparse.Namespace) -> tuple["Tensor", "Tensor"]:
    """Return images and labels."""
    from resilient_heads.inputs.images import read_images

    return read_images(path, preprocessing, limit=arguments.images)


def _wrap(model: "nn.Module", embeddings: str) -> None:
    """Give a model a head from embeddings in a file or of a name."""
    from resilient_heads.heads.swap.wrap import wrap_model
    from resilient_heads.text.embeddings import ClassEmbeddings

    wrap_model(model, embeddings=ClassEmbeddings.load(embeddings) if Path(embeddings).is_file() else embeddings)
