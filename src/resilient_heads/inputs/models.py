"""A model by its name: from torchvision, timm, transformers, or a function in a Python file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from resilient_heads.checks import printable
from resilient_heads.errors import ArgumentError, ModelError
from resilient_heads.extras import require
from resilient_heads.inputs.class_order import Labels
from resilient_heads.inputs.error_context import error_context
from resilient_heads.inputs.named_model import NamedModel
from resilient_heads.inputs.preprocessing import Preprocessing
from resilient_heads.inputs.python_file import model_from_file
from resilient_heads.inputs.transformers_models import load_transformers

_TRANSFORMS_INPUT = ("googlenet", "inception_v3")
"""Models of torchvision that normalise their input a second time; their published weights expect it."""

_OTHER_TASKS = ("detection", "segmentation", "optical_flow", "video")
_SHOWN = 5


def named_model(name: str, *, pretrained: bool, classes: int | None = None) -> NamedModel:
    """Make a model, and find the preprocessing of its images and its labels as far as its library knows them.

    Every weight of the model comes from the named source; if the source lacks a weight or has one more, the function
    raises. ``file.py:factory`` runs the file and calls ``factory()``: use it only with files that you trust.

    Args:
        name: ``torchvision:NAME``, ``timm:NAME``, ``hf:FOLDER`` (or ``hf:OWNER/NAME``), or ``file.py:factory``.
        pretrained: Load the published weights of torchvision or timm, and those in the folder of transformers. False:
            the caller loads weights into the model, which has random ones.
        classes: Number of classes, for torchvision and timm; None: that of the published weights.

    Raises:
        ArgumentError: ``name`` has none of these forms, or ``classes`` does not go with the other arguments.
        ModelError: There is no model of that name, its weights cannot be downloaded or do not fit, or it is no
            classifier.
        MissingExtraError: The model's library is not installed.
    """
    source, _, rest = name.partition(":")
    if classes is not None and (classes < 2 or source not in ("torchvision", "timm")):
        raise ArgumentError("--classes must be a whole number of at least 2, for models of torchvision and timm.")
    if classes is not None and pretrained:
        raise ArgumentError("Published weights have their own number of classes; pass --classes with --checkpoint.")
    if source == "torchvision" and rest:
        made = _from_torchvision(rest, pretrained=pretrained, classes=classes)
    elif source == "timm" and rest:
        made = _from_timm(rest, pretrained=pretrained, classes=classes)
    elif source == "hf" and rest:
        made = load_transformers(rest, weights=pretrained)
    else:
        file, _, factory = name.rpartition(":")
        if not file.endswith(".py") or not factory:
            raise ArgumentError(
                f"No model is named {printable(name)!r}; expected torchvision:NAME, timm:NAME, hf:FOLDER, or "
                "file.py:factory."
            )
        made = NamedModel(model=model_from_file(Path(file), factory), preprocessing=Preprocessing())
    with error_context(ModelError, f"{printable(name)} cannot be put into evaluation mode"):
        made.model.eval()
    return made


def _from_torchvision(name: str, *, pretrained: bool, classes: int | None) -> NamedModel:
    """Make a model of torchvision; its pickled weights are read with ``weights_only=True``."""
    models = require("torchvision.models", extra="vision", purpose="models of torchvision")
    with error_context(ModelError, f"torchvision cannot make a classifier {printable(name)!r}"):
        task = models.get_model_builder(name).__module__.split(".")[2]
        if task in _OTHER_TASKS:
            raise ModelError(f"torchvision's {name} is a model of {task.replace('_', ' ')}; expected a classifier.")
        weights = models.get_model_weights(name)
        options: dict[str, object] = {} if classes is None else {"num_classes": classes}
        if name in _TRANSFORMS_INPUT:
            options |= {"init_weights": False, "transform_input": pretrained}
        model = models.get_model(name, weights=None, **options)
    if not list(weights):
        if pretrained:
            raise ModelError(f"torchvision has no weights of {name}; pass --checkpoint.")
        return NamedModel(model=model, preprocessing=Preprocessing())
    if pretrained:
        failure = f"The weights of torchvision's {name} could not be downloaded; pass --checkpoint"
        with error_context(ModelError, failure):
            state = weights.DEFAULT.get_state_dict(progress=False, check_hash=True, weights_only=True)
        with error_context(ModelError, f"The weights of torchvision's {name} do not fit its model; pass --checkpoint"):
            model.load_state_dict(state)
    transform = weights.DEFAULT.transforms()
    mean, std = (tuple(getattr(transform, which, ())) or None for which in ("mean", "std"))
    categories = weights.DEFAULT.meta.get("categories") if pretrained else None
    return NamedModel(
        model=model,
        preprocessing=Preprocessing(transform=transform, mean=mean, std=std),
        labels=None if not categories else tuple((label,) for label in categories),
    )


def _from_timm(name: str, *, pretrained: bool, classes: int | None) -> NamedModel:
    """Make a model of timm."""
    timm = require("timm", extra="timm", purpose="models of timm")
    data = require("timm.data", extra="timm", purpose="models of timm")
    options = {} if classes is None else {"num_classes": classes}
    advice = " with its weights; pass --checkpoint" if pretrained else ""
    with error_context(ModelError, f"timm cannot make {printable(name)!r}{advice}"), _strict_loading():
        model = timm.create_model(name, pretrained=pretrained, **options)
        config = data.resolve_model_data_config(model)
        transform = data.create_transform(**config, is_training=False)
    if not getattr(model, "num_classes", 1):
        raise ModelError(
            f"timm's {printable(name)!r} has no classifier; it gives features. Name weights that were trained to "
            "classify, or pass --classes with --checkpoint."
        )
    return NamedModel(
        model=model,
        preprocessing=Preprocessing(transform=transform, mean=tuple(config["mean"]), std=tuple(config["std"])),
        labels=_timm_labels(model, data, is_timms=":" not in name) if pretrained else None,
    )


def _timm_labels(model: Any, data: Any, *, is_timms: bool) -> Labels | None:
    """Return the labels that a model of timm brings; timm's own weights without labels are those of ImageNet."""
    config = getattr(model, "pretrained_cfg", {})
    names, descriptions = config.get("label_names"), config.get("label_descriptions") or {}
    subset = data.infer_imagenet_subset(model) if is_timms and not names else None
    if subset is not None:
        information = data.ImageNetInfo(subset)
        names, descriptions = information.label_names(), information.label_descriptions(as_dict=True)
    if not names or len(names) != model.num_classes:
        return None
    names = [names[key] for key in sorted(names, key=int)] if isinstance(names, dict) else names
    return tuple((str(name), *([str(descriptions[name])] if name in descriptions else [])) for name in names)


@contextmanager
def _strict_loading() -> Iterator[None]:
    """Raise ModelError if a library loads weights in the block and skips, or lacks, any of them."""
    usual = nn.Module.load_state_dict

    def load(module: nn.Module, *arguments: Any, **options: Any) -> Any:
        result = usual(module, *arguments, **options)
        for kind, names in (
            ("lack", result.missing_keys),
            ("have, beside those of the model,", result.unexpected_keys),
        ):
            if names:
                raise ModelError(
                    f"The weights {kind} {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}, so the "
                    "model would not be the published one. Check the number of classes in its configuration."
                )
        return result

    nn.Module.load_state_dict = load  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.load_state_dict = usual  # type: ignore[method-assign]
