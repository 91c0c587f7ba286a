"""The options that name a model and its images, shared by several commands."""

import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import resilient_heads as rh
from resilient_heads.errors import ForwardError, ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from resilient_heads.inputs.class_order import Labels
    from resilient_heads.inputs.images import ImageSet
    from resilient_heads.inputs.named_model import NamedModel


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
        help="file of weights: safetensors, what torch.save wrote (no code in it runs), or an .index.json",
    )
    model.add_argument(
        "--part", metavar="NAME", help="which weights of a checkpoint with several, such as state_dict_ema"
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
    order = data.add_mutually_exclusive_group()
    order.add_argument(
        "--class-index",
        type=Path,
        metavar="FILE",
        help='JSON with the class of each folder: {"cat": 0}, ["cat", "dog"] or {"0": ["n02123045", "tabby"]} '
        "(default: class_to_idx.json in the folder, else the model's labels, else the sorted names)",
    )
    order.add_argument(
        "--sort",
        choices=["numeric", "name"],
        help="the folders are the model's classes 0, 1, 2, ... in the order of their numbers or names; name is the "
        "order of torchvision's ImageFolder",
    )
    data.add_argument(
        "--images", type=int, metavar="N", help="use only N images, taken at even distances (default: all)"
    )
    data.add_argument(
        "--resize",
        type=int,
        metavar="PIXELS",
        help="length of an image's shorter side (default: the model's, if neither --resize nor --crop is given)",
    )
    data.add_argument(
        "--crop", type=int, metavar="PIXELS", help="side of the square that is cut from an image's centre"
    )
    data.add_argument("--mean", type=float, nargs="+", metavar="X", help="mean of each channel, for values in [0, 1]")
    data.add_argument("--std", type=float, nargs="+", metavar="X", help="standard deviation of each channel")


def load_model_and_images(arguments: argparse.Namespace) -> tuple["NamedModel", "ImageSet"]:
    """Return the model with its weights on its device, and labelled images with the classes of the model."""
    # torch takes seconds: --help must not wait for it
    from resilient_heads.checkpoints.read import read_weights
    from resilient_heads.evaluation import usable_device
    from resilient_heads.inputs.error_context import error_context
    from resilient_heads.inputs.images import ClassChoice, read_images
    from resilient_heads.inputs.models import named_model
    from resilient_heads.inputs.preprocessing import preprocessing_from

    device = usable_device(arguments.device)
    named = named_model(arguments.model, pretrained=arguments.checkpoint is None, classes=arguments.classes)
    if named.head:
        _rebuild_head(named)
    embeddings = None if arguments.wrap is None else _embeddings(arguments.wrap)
    state = None if arguments.checkpoint is None else read_weights(arguments.checkpoint)
    preprocessing = preprocessing_from(
        named.preprocessing, resize=arguments.resize, crop=arguments.crop, mean=arguments.mean, std=arguments.std
    )
    named = replace(named, preprocessing=preprocessing, labels=_labels(named, embeddings))
    choice = ClassChoice(labels=named.labels, index_file=arguments.class_index, sort=arguments.sort)
    data = read_images(arguments.data, preprocessing, most=arguments.images, classes=choice)
    if embeddings is not None:
        _wrap(named.model, embeddings, data.images[:2])
    if state is not None:
        rh.load_checkpoint(named.model, state, part=arguments.part)
    with error_context(ModelError, f"The model cannot be moved to {device} for evaluation"):
        named.model.to(device).eval()
    return named, data


@contextlib.contextmanager
def explain_channels(named: "NamedModel", data: "ImageSet") -> Iterator[None]:
    """Say what to do if the model refuses pictures in the block because it takes one channel."""
    from torch import nn  # torch takes seconds: --help must not wait for it

    try:
        yield
    except ForwardError as error:
        first = next((layer for layer in named.model.modules() if isinstance(layer, nn.Conv2d)), None)
        if data.folders is None or first is None or first.in_channels != 1:
            raise
        raise ForwardError(
            f"{error}. Pictures in folders are read with three channels, and the model's first convolution takes one: "
            "pass an .npz file with grey images (N, 1, H, W) and labels (N,)."
        ) from error


def _rebuild_head(named: "NamedModel") -> None:
    """Give a model the text-guided head with which it was saved."""
    classifier = next(name for name in named.head if name.endswith("projection.weight")).rpartition(".projection")[0]
    tensors = {name.removeprefix(f"{classifier}."): tensor for name, tensor in named.head.items()}
    rows = tensors["projection.weight"].flatten(1).float()
    names = tuple(label[0] for label in named.labels or ()) or tuple(f"class {row}" for row in range(len(rows)))
    rh.wrap_model(
        named.model,
        embeddings=rh.ClassEmbeddings(rows, names),
        classifier=classifier,
        normalize="logit_scale" in tensors,
    )
    state = named.model.state_dict() | {f"{classifier}.{name}": tensor for name, tensor in tensors.items()}
    rh.load_checkpoint(named.model, state)


def _embeddings(name: str) -> "rh.ClassEmbeddings":
    """Return the embeddings of --wrap: a file, or prebuilt ones."""
    return rh.ClassEmbeddings.load(name) if Path(name).is_file() else rh.load_embeddings(name)


def _labels(named: "NamedModel", embeddings: "rh.ClassEmbeddings | None") -> "Labels | None":
    """Return the names of the model's classes: those of a text-guided head, if it has or gets one."""
    from resilient_heads.heads.find.locate import find_heads  # torch takes seconds: --help must not wait for it

    texts = [head.class_names for head in find_heads(named.model).values()] if embeddings is None else []
    names = embeddings.class_names if embeddings is not None else next((text for text in texts if text), None)
    return named.labels if names is None else tuple((name,) for name in names)


def _wrap(model: "nn.Module", embeddings: "rh.ClassEmbeddings", example_input: "Tensor") -> None:
    """Give the model a text-guided head; show the model images only if it cannot be wrapped without them."""
    try:
        with contextlib.suppress(ModelError):
            rh.wrap_model(model, embeddings=embeddings)
            return
        rh.wrap_model(model, embeddings=embeddings, example_input=example_input)
    except ModelError as error:
        raise ModelError(
            f"--wrap: {error} In this command, --classes sets the number of classes of models of torchvision and timm; "
            "for arguments of rh.wrap_model, call it in a Python file and pass --model file.py:factory."
        ) from error
