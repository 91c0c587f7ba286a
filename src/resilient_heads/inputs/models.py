"""A model by its name: from torchvision, timm, transformers, or a function in a Python file."""

import importlib.util
import os
import sys
from pathlib import Path

from torch import Tensor, nn

from resilient_heads.errors import ArgumentError, ModelError
from resilient_heads.extras import require
from resilient_heads.inputs.error_context import error_context
from resilient_heads.inputs.preprocessing import Preprocessing

_TRANSFORMS_INPUT = ("googlenet", "inception_v3")
"""Models of torchvision that normalise their input a second time; their published weights expect it."""


def named_model(name: str, *, pretrained: bool, classes: int | None = None) -> tuple[nn.Module, Preprocessing]:
    """Make a model, and the preprocessing of its images as far as its library knows it.

    ``file.py:factory`` runs the file and calls ``factory()``: use it only with files that you trust.

    Args:
        name: ``torchvision:NAME``, ``timm:NAME``, ``hf:FOLDER`` (or ``hf:OWNER/NAME``), or ``file.py:factory``.
        pretrained: Load the published weights of torchvision or timm.
        classes: Number of classes, for torchvision and timm; None: that of the published weights.

    Returns:
        The model in evaluation mode on the CPU, and its preprocessing.

    Raises:
        ArgumentError: ``name`` has none of these forms, or ``classes`` does not go with the other arguments.
        ModelError: There is no model of that name, or its weights cannot be downloaded.
        MissingExtraError: The model's library is not installed.
    """
    source, _, rest = name.partition(":")
    if classes is not None and (classes < 2 or source not in ("torchvision", "timm")):
        raise ArgumentError("--classes must be a whole number of at least 2, for models of torchvision and timm.")
    if classes is not None and pretrained:
        raise ArgumentError("Published weights have their own number of classes; pass --classes with --checkpoint.")
    if source == "torchvision" and rest:
        model, preprocessing = _from_torchvision(rest, pretrained=pretrained, classes=classes)
    elif source == "timm" and rest:
        model, preprocessing = _from_timm(rest, pretrained=pretrained, classes=classes)
    elif source == "hf" and rest:
        model, preprocessing = _from_transformers(rest)
    else:
        file, _, factory = name.rpartition(":")
        if not file.endswith(".py") or not factory:
            raise ArgumentError(
                f"No model is named {name!r}; expected torchvision:NAME, timm:NAME, hf:FOLDER, or file.py:factory."
            )
        model, preprocessing = _from_file(Path(file), factory), Preprocessing()
    return model.eval(), preprocessing


def _from_torchvision(name: str, *, pretrained: bool, classes: int | None) -> tuple[nn.Module, Preprocessing]:
    """Make a model of torchvision; its pickled weights are read with ``weights_only=True``."""
    models = require("torchvision.models", extra="vision", purpose="models of torchvision")
    with error_context(ModelError, f"torchvision cannot make a classifier {name!r}"):
        weights = models.get_model_weights(name)
        options: dict[str, object] = {} if classes is None else {"num_classes": classes}
        if name in _TRANSFORMS_INPUT:
            options |= {"init_weights": False, "transform_input": pretrained}
        model = models.get_model(name, weights=None, **options)
    if not list(weights):
        if pretrained:
            raise ModelError(f"torchvision has no weights of {name}; pass --checkpoint.")
        return model, Preprocessing()
    if pretrained:
        failure = f"The weights of torchvision's {name} could not be downloaded; pass --checkpoint"
        with error_context(ModelError, failure):
            model.load_state_dict(weights.DEFAULT.get_state_dict(progress=False, check_hash=True, weights_only=True))
    transform = weights.DEFAULT.transforms()
    mean, std = (tuple(getattr(transform, which, ())) or None for which in ("mean", "std"))
    return model, Preprocessing(transform=transform, mean=mean, std=std)


def _from_timm(name: str, *, pretrained: bool, classes: int | None) -> tuple[nn.Module, Preprocessing]:
    """Make a model of timm."""
    timm = require("timm", extra="timm", purpose="models of timm")
    data = require("timm.data", extra="timm", purpose="models of timm")
    options = {} if classes is None else {"num_classes": classes}
    advice = " with its weights; pass --checkpoint" if pretrained else ""
    with error_context(ModelError, f"timm cannot make {name!r}{advice}"):
        model = timm.create_model(name, pretrained=pretrained, **options)
        config = data.resolve_model_data_config(model)
        transform = data.create_transform(**config, is_training=False)
    return model, Preprocessing(transform=transform, mean=tuple(config["mean"]), std=tuple(config["std"]))


def _from_transformers(name: str) -> tuple[nn.Module, Preprocessing]:
    """Load a classifier of transformers, and its image processor if it has one."""
    transformers = require("transformers", extra="hf", purpose="models of transformers")
    local = os.path.isdir(name)
    with error_context(ModelError, f"transformers cannot load an image classifier from {name!r}"):
        model = transformers.AutoModelForImageClassification.from_pretrained(name, local_files_only=local)
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(name, local_files_only=local)
    except (OSError, ValueError, ImportError):
        return model, Preprocessing()

    def transform(image: object) -> Tensor:
        pixels: Tensor = processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels

    mean, std = (tuple(getattr(processor, which, None) or ()) or None for which in ("image_mean", "image_std"))
    return model, Preprocessing(transform=transform, mean=mean, std=std)


def _from_file(path: Path, factory: str) -> nn.Module:
    """Run a Python file and call its factory."""
    if not path.is_file():
        raise ModelError(f"There is no file {path}.")
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)  # the file may import modules of its folder
    try:
        with error_context(ModelError, f"{path} cannot be run"):
            specification.loader.exec_module(module)
        make = getattr(module, factory, None)
        if not callable(make):
            raise ModelError(f"{path} has no function {factory!r}.")
        with error_context(ModelError, f"{factory}() in {path} failed"):
            model = make()
    finally:
        sys.path.remove(folder)
    if not isinstance(model, nn.Module):
        raise ModelError(f"{factory}() in {path} returned a {type(model).__name__}; expected a torch.nn.Module.")
    return model
