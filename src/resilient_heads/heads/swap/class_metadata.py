"""Update what a model says about its classes: counts, transformers' labels, timm's reset_classifier."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from torch import nn

from resilient_heads.errors import ModelError

_COUNTS = ("num_classes", "num_labels")
_RESET = "reset_classifier"


@dataclass(frozen=True)
class ClassMetadata:
    """What the modules around a classifier said about its classes before it was replaced.

    A module is identified by its distance from the classifier, so that the record stays valid when the model is copied,
    pickled, or becomes part of a larger model.

    Attributes:
        num_classes: The classifier's number of classes.
        counts: (distance, attribute) of each attribute that holds this number.
        labels: (distance, id2label, label2id) of transformers configurations.
    """

    num_classes: int
    counts: tuple[tuple[int, str], ...]
    labels: tuple[tuple[int, dict[int, str], dict[str, int]], ...]


def read_metadata(model: nn.Module, name: str, num_classes: int) -> ClassMetadata:
    """Return what the modules around the classifier at path ``name`` say about its classes; skip other numbers."""
    counts = tuple(
        (distance, attribute)
        for distance, module in _modules_around(model, name)
        for attribute in _COUNTS
        if type(vars(module).get(attribute)) is int and vars(module)[attribute] == num_classes
    )
    labels = tuple(
        (distance, dict(config.id2label), dict(config.label2id or {}))
        for distance, module in _modules_around(model, name)
        if (config := _labelled(module)) is not None and len(config.id2label) == num_classes
    )
    return ClassMetadata(num_classes, counts, labels)


def update(model: nn.Module, name: str, before: ClassMetadata, num_classes: int, names: Sequence[str] | None) -> None:
    """Set the new classes in the modules around a classifier in place, and make ``reset_classifier`` refuse.

    Args:
        model: The model.
        name: The classifier's path.
        before: What :func:`read_metadata` returned.
        num_classes: The new number of classes.
        names: Names of the new classes; None keeps the labels unless their number changed.
    """
    around = dict(_modules_around(model, name))
    for distance, attribute in before.counts:
        setattr(around[distance], attribute, num_classes)
    for distance, old, _ in before.labels:
        config: Any = around[distance].config
        if names is not None or len(old) != num_classes:
            words = list(names) if names is not None else [f"LABEL_{row}" for row in range(num_classes)]
            config.id2label = dict(enumerate(words))
            config.label2id = {word: row for row, word in enumerate(words)}
    for module in around.values():
        if callable(getattr(module, _RESET, None)) and _RESET not in vars(module):
            # timm's method would silently replace the head by a plain Linear.
            setattr(module, _RESET, partial(_refuse_reset, type(module).__name__))


def restore(model: nn.Module, name: str, before: ClassMetadata) -> None:
    """Undo :func:`update`."""
    around = dict(_modules_around(model, name))
    for distance, attribute in before.counts:
        setattr(around[distance], attribute, before.num_classes)
    for distance, id2label, label2id in before.labels:
        config: Any = around[distance].config
        config.id2label, config.label2id = dict(id2label), dict(label2id)
    allow_reset(model, name)


def allow_reset(model: nn.Module, name: str) -> None:
    """Give the modules around a classifier their ``reset_classifier`` back."""
    for _, module in _modules_around(model, name):
        method = vars(module).get(_RESET)
        if isinstance(method, partial) and method.func is _refuse_reset:
            del vars(module)[_RESET]


def _modules_around(model: nn.Module, name: str) -> Iterator[tuple[int, nn.Module]]:
    """Yield the modules that contain a path, nearest first, with their distance."""
    distance = 0
    while name:
        name, distance = name.rpartition(".")[0], distance + 1
        yield distance, model.get_submodule(name)


def _labelled(module: nn.Module) -> Any:
    """Return a module's transformers configuration, or None."""
    config = getattr(module, "config", None)
    return config if isinstance(getattr(config, "id2label", None), dict) else None


def _refuse_reset(kind: str, *args: object, **options: object) -> NoReturn:
    """Replace ``reset_classifier`` while the model has a text-guided head."""
    raise ModelError(
        f"{kind}.reset_classifier would silently replace the text-guided head by a plain layer; call "
        "unwrap_model(model) first, then reset and wrap again."
    )
