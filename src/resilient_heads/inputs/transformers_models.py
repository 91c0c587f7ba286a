"""An image classifier of transformers, from a folder or the Hub, with exactly the weights that are stored there."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from resilient_heads.checks import printable
from resilient_heads.errors import ModelError
from resilient_heads.extras import require
from resilient_heads.inputs.class_order import Labels
from resilient_heads.inputs.error_context import error_context
from resilient_heads.inputs.named_model import NamedModel
from resilient_heads.inputs.preprocessing import Preprocessing

_PROJECTION = "projection.weight"
_SHOWN = 5


def load_transformers(name: str, *, weights: bool) -> NamedModel:
    """Return the model, its preprocessing, its labels, and the tensors of a text-guided head if the folder has one.

    Args:
        name: A folder, or ``OWNER/NAME`` on the Hub.
        weights: Load the weights; False: make a model with random weights, for a checkpoint.

    Raises:
        ModelError: There is no classifier of that name, it needs code that transformers does not have, its weights are
            a pickle, or they lack a tensor of the model or hold another one.
        MissingExtraError: transformers is not installed.
    """
    transformers = require("transformers", extra="hf", purpose="models of transformers")
    head: dict[str, Tensor] = {}
    options = {"local_files_only": os.path.isdir(name), "trust_remote_code": False}
    config = _configuration(transformers, name, options)
    kind = transformers.AutoModelForImageClassification
    with error_context(ModelError, f"transformers cannot load an image classifier from {printable(name)!r}"):
        if not weights:
            model = kind.from_config(config, trust_remote_code=False)
        else:
            _refuse_pickles(Path(name))
            with _quiet(transformers):
                # Shapes that differ are reported, and then refused, instead of raised without their names.
                model, report = kind.from_pretrained(
                    name,
                    config=config,
                    use_safetensors=True,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                    **options,
                )
            head = _head_tensors(Path(name), report)
            if not head:
                _refuse_differences(name, report)
    return NamedModel(
        model=model,
        preprocessing=_processor(transformers, name, options),
        labels=_labels(model.config),
        head=head,
    )


def _configuration(transformers: Any, name: str, options: dict[str, Any]) -> Any:
    """Return the configuration of a model; refuse one that asks for code of its own."""
    if not options["local_files_only"] and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        raise ModelError(f"There is no folder {printable(name)}; expected a folder, or OWNER/NAME on the Hub.")
    if options["local_files_only"] and not (Path(name) / "config.json").is_file():
        raise ModelError(
            f"{printable(name)} has no config.json; expected a folder that model.save_pretrained(folder) wrote."
        )
    with error_context(ModelError, f"transformers cannot read the configuration of {printable(name)!r}"):
        content, _ = transformers.PretrainedConfig.get_config_dict(name, **options)
        if content.get("auto_map"):
            raise ModelError(
                f"{printable(name)} brings code of its own ('auto_map' in config.json), which this command does not "
                "run. If you trust the code, load the model in a Python file and pass file.py:factory."
            )
        return transformers.AutoConfig.from_pretrained(name, **options)


def _refuse_pickles(folder: Path) -> None:
    """Raise ModelError for a folder whose weights are pickles only."""
    if folder.is_dir() and any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{printable(folder)} holds its weights as a pickle (.bin), and a pickle can run code. Load it where you "
            "trust it, and save it as safetensors: model.save_pretrained(folder)."
        )


def _head_tensors(folder: Path, report: dict[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a text-guided head, if a folder has one in place of the classifier, and nothing else."""
    unexpected = set(report["unexpected_keys"])
    prefix = next((key.removesuffix(_PROJECTION) for key in unexpected if key.endswith(f".{_PROJECTION}")), None)
    if prefix is None or not folder.is_dir() or report["mismatched_keys"]:
        return {}
    if not all(key.startswith(prefix) for key in unexpected):
        return {}
    if not set(report["missing_keys"]) <= {f"{prefix}weight", f"{prefix}bias"}:
        return {}
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            tensors |= {key: stored.get_tensor(key) for key in unexpected.intersection(stored.keys())}
    return tensors if set(tensors) == unexpected else {}


def _refuse_differences(name: str, report: dict[str, Any]) -> None:
    """Raise ModelError if the stored weights and those of the model differ in names or shapes."""
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    shapes = sorted(each if isinstance(each, str) else each[0] for each in report["mismatched_keys"])
    differences = [
        f"{what}: {_listed(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    differences += [str(each).splitlines()[0] for each in report["error_msgs"][:1]]
    if not differences:
        return
    raise ModelError(
        f"The weights in {printable(name)} do not fit its model; {'; '.join(differences)}. transformers would fill in "
        "random weights. Save the whole classifier with model.save_pretrained(folder), or pass its weights as "
        "--checkpoint FILE."
    )


def _processor(transformers: Any, name: str, options: dict[str, Any]) -> Preprocessing:
    """Return the preprocessing of a model's image processor; unknown if it has none."""
    files = ("preprocessor_config.json", "processor_config.json")
    if options["local_files_only"] and not any((Path(name) / file).exists() for file in files):
        return Preprocessing()
    try:
        with error_context(ModelError, f"transformers cannot read the image processor of {printable(name)!r}"):
            content, _ = transformers.ImageProcessingMixin.get_image_processor_dict(name, **options)
            if content.get("auto_map"):  # its own code is not run, and the usual processor would be another one
                return Preprocessing()
            processor = transformers.AutoImageProcessor.from_pretrained(name, **options)
    except ModelError as error:
        if isinstance(error.__cause__, OSError) and not options["local_files_only"]:
            return Preprocessing()
        raise

    def transform(image: object) -> Tensor:
        pixels: Tensor = processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels

    mean, std = (tuple(getattr(processor, which, None) or ()) or None for which in ("image_mean", "image_std"))
    return Preprocessing(transform=transform, mean=mean, std=std)


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep transformers from printing a table of differences, which this module reports."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)


def _labels(config: Any) -> Labels | None:
    """Return the labels in a configuration; None for the placeholders ``LABEL_0``, ``LABEL_1``, ..."""
    named = getattr(config, "id2label", None) or {}
    labels = [str(named.get(number, "")) for number in range(len(named))]
    if not labels or any(label in ("", f"LABEL_{number}") for number, label in enumerate(labels)):
        return None
    return tuple((label,) for label in labels)


def _listed(names: Sequence[str]) -> str:
    """Return names as a list in a sentence, cut where it is long."""
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
