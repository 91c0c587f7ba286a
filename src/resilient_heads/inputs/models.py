"""A model by its name: torchvision, timm, transformers, or a function in a file of one's own."""

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from resilient_heads.errors import ModelError
from resilient_heads.extras import require
from resilient_heads.inputs.error_context import explained
from resilient_heads.inputs.preprocessing import Preprocessing

EXPECTED = "torchvision:NAME, timm:NAME, hf:FOLDER, or file.py:factory"
_TRANSFORMS_INPUT = ("googlenet", "inception_v3")
"""Models of torchvision whose published weights expect them to normalise their input once more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedModel:
    """A model and what it says about its pictures.

    Attributes:
        model: In evaluation mode, on the CPU.
        preprocessing: The model's own, as far as it is known.
    """

    model: nn.Module
    preprocessing: Preprocessing


def named_model(name: str, *, pretrained: bool, classes: int | None = None) -> NamedModel:
    """Make a model.

    ``file.py:factory`` runs the file and calls ``factory()``: do that with files that you trust.

    Args:
        name: ``torchvision:NAME``, ``timm:NAME``, ``hf:FOLDER`` (or ``hf:OWNER/NAME``), or ``file.py:factory``.
        pretrained: Load the published weights, where the name alone does not bring any.
        classes: Number of classes, for torchvision and timm, where it is not that of the published weights.

    Raises:
        ModelError: No model of that name, or its weights cannot be had.
        MissingExtraError: The library that has the model is not installed.
    """
    source, _, rest = name.partition(":")
    if classes is not None and (classes < 2 or source not in ("torchvision", "timm")):
        raise ModelError("--classes is a number of at least 2, for models of torchvision and timm.")
    if classes is not None and pretrained:
        raise ModelError("Published weights have their own number of classes; pass --classes with --checkpoint.")
    if source == "torchvision" and rest:
        found = _torchvision(rest, pretrained=pretrained, classes=classes)
    elif source == "timm" and rest:
        found = _timm(rest, pretrained=pretrained, classes=classes)
    elif source == "hf" and rest:
        found = _transformers(rest)
    else:
        file, _, factory = name.rpartition(":")
        if not file.endswith(".py") or not factory:
            raise ModelError(f"No model is named {name!r}; expected {EXPECTED}.")
        found = NamedModel(model=_made_by(Path(file), factory), preprocessing=Preprocessing())
    found.model.eval()
    return found


def _torchvision(name: str, *, pretrained: bool, classes: int | None) -> NamedModel:
    """Make one of torchvision's; its pickled weights are read with ``weights_only``."""
    models = require("torchvision.models", extra="vision", purpose="models of torchvision")
    with explained(ModelError, f"torchvision has no classifier {name!r} that can be made"):
        kinds = list(models.get_model_weights(name))
        options: dict[str, object] = {} if classes is None else {"num_classes": classes}
        if name in _TRANSFORMS_INPUT:
            options |= {"init_weights": False, "transform_input": pretrained}
        model = models.get_model(name, weights=None, **options)
    if pretrained:
        if not kinds:
            raise ModelError(f"torchvision has no weights of {name}; pass --checkpoint.")
        weights = models.get_model_weights(name).DEFAULT
        with explained(ModelError, f"The weights of torchvision's {name} cannot be had; pass --checkpoint"):
            model.load_state_dict(weights.get_state_dict(progress=False, check_hash=True, weights_only=True))
    if not kinds:
        return NamedModel(model=model, preprocessing=Preprocessing())
    picture = models.get_model_weights(name).DEFAULT.transforms()
    mean, std = (tuple(getattr(picture, which, ())) or None for which in ("mean", "std"))
    return NamedModel(model=model, preprocessing=Preprocessing(picture=picture, mean=mean, std=std))


def _timm(name: str, *, pretrained: bool, classes: int | None) -> NamedModel:
    """Make one of timm's."""
    timm = require("timm", extra="timm", purpose="models of timm")
    data = require("timm.data", extra="timm", purpose="models of timm")
    options = {} if classes is None else {"num_classes": classes}
    with explained(
        ModelError, f"timm cannot make {name!r}{' with its weights; pass --checkpoint' if pretrained else ''}"
    ):
        model = timm.create_model(name, pretrained=pretrained, **options)
        config = data.resolve_model_data_config(model)
        picture = data.create_transform(**config, is_training=False)
    return NamedModel(
        model=model,
        preprocessing=Preprocessing(picture=picture, mean=tuple(config["mean"]), std=tuple(config["std"])),
    )


def _transformers(name: str) -> NamedModel:
    """Load a classifier of transformers and, where it has one, its image processor."""
    transformers = require("transformers", extra="hf", purpose="models of transformers")
    local = os.path.isdir(name)
    with explained(ModelError, f"transformers cannot load an image classifier from {name!r}"):
        model = transformers.AutoModelForImageClassification.from_pretrained(name, local_files_only=local)
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(name, local_files_only=local)
    except (OSError, ValueError, ImportError):
        return NamedModel(model=model, preprocessing=Preprocessing())

    def picture(image: object) -> Tensor:
        pixels: Tensor = processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels

    mean, std = (tuple(getattr(processor, which, None) or ()) or None for which in ("image_mean", "image_std"))
    return NamedModel(model=model, preprocessing=Preprocessing(picture=picture, mean=mean, std=std))


def _made_by(path: Path, factory: str) -> nn.Module:
    """Run a file and call its factory."""
    if not path.is_file():
        raise ModelError(f"There is no file {path}.")
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.path.insert(0, str(path.resolve().parent))  # for what stands beside it
    try:
        with explained(ModelError, f"{path} cannot be run"):
            specification.loader.exec_module(module)
        make = getattr(module, factory, None)
        if not callable(make):
            raise ModelError(f"{path} has no function {factory!r}.")
        with explained(ModelError, f"{factory}() in {path} failed"):
            model = make()
    finally:
        sys.path.remove(str(path.resolve().parent))
    if not isinstance(model, nn.Module):
        raise ModelError(f"{factory}() in {path} gave a {type(model).__name__}; expected a torch.nn.Module.")
    return model
