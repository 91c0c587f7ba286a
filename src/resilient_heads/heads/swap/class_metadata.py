"""What around a classifier must change with it: counts of classes, transformers' labels, timm's reset_classifier."""

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
    """What the modules above a classifier said before it was replaced.

    Modules are named by how many steps up they are, so that the record stays true where the model becomes part of a
    larger one, is copied, or is pickled.

    Attributes:
        counts: (steps up, attribute, number of classes).
        labels: (steps up, id2label, label2id) of transformers configurations.
    """

    counts: tuple[tuple[int, str, int], ...]
    labels: tuple[tuple[int, dict[int, str], dict[str, int]], ...]


def survey(model: nn.Module, name: str, num_classes: int) -> ClassMetadata:
    """Record what the modules above a classifier say about its classes.

    Args:
        model: The model.
        name: The classifier's path.
        num_classes: How many it tells apart; other counts are somebody else's.
    """
    counts = tuple(
        (steps, attribute, num_classes)
        for steps, module in _above(model, name)
        for attribute in _COUNTS
        if type(vars(module).get(attribute)) is int and vars(module)[attribute] == num_classes
    )
    labels = tuple(
        (steps, dict(config.id2label), dict(config.label2id or {}))
        for steps, module in _above(model, name)
        if (config := _labelled(module)) is not None and len(config.id2label) == num_classes
    )
    return ClassMetadata(counts, labels)


def adapt(model: nn.Module, name: str, before: ClassMetadata, num_classes: int, names: Sequence[str] | None) -> None:
    """Tell the modules above a classifier about its new classes, and let ``reset_classifier`` refuse.

    Args:
        model: The model.
        name: The classifier's path.
        before: What :func:`survey` recorded.
        num_classes: The new number of classes.
        names: The new classes' names; None leaves labels alone unless their number changed.
    """
    above = dict(_above(model, name))
    for steps, attribute, _ in before.counts:
        setattr(above[steps], attribute, num_classes)
    for steps, old, _ in before.labels:
        config: Any = above[steps].config
        if names is not None or len(old) != num_classes:
            words = list(names) if names is not None else [f"LABEL_{row}" for row in range(num_classes)]
            config.id2label = dict(enumerate(words))
            config.label2id = {word: row for row, word in enumerate(words)}
    for module in above.values():
        if callable(getattr(module, _RESET, None)) and _RESET not in vars(module):
            # Left alone, timm's method would put a plain Linear where the head is, without a word.
            setattr(module, _RESET, partial(_refuse_reset, type(module).__name__))


def restore(model: nn.Module, name: str, before: ClassMetadata) -> None:
    """Undo :func:`adapt`."""
    above = dict(_above(model, name))
    for steps, attribute, count in before.counts:
        setattr(above[steps], attribute, count)
    for steps, id2label, label2id in before.labels:
        config: Any = above[steps].config
        config.id2label, config.label2id = dict(id2label), dict(label2id)
    allow_reset(model, name)


def allow_reset(model: nn.Module, name: str) -> None:
    """Give the modules above a place their own ``reset_classifier`` back."""
    for _, module in _above(model, name):
        guard = vars(module).get(_RESET)
        if isinstance(guard, partial) and guard.func is _refuse_reset:
            del vars(module)[_RESET]


def _above(model: nn.Module, name: str) -> Iterator[tuple[int, nn.Module]]:
    """Yield the modules that hold a name, nearest first, with their distance."""
    steps = 0
    while name:
        name, steps = name.rpartition(".")[0], steps + 1
        yield steps, model.get_submodule(name)


def _labelled(module: nn.Module) -> Any:
    """Return a module's transformers configuration, or None."""
    config = getattr(module, "config", None)
    return config if isinstance(getattr(config, "id2label", None), dict) else None


def _refuse_reset(kind: str, *args: object, **options: object) -> NoReturn:
    """Stand in for ``reset_classifier`` while a head serves."""
    raise ModelError(
        f"{kind}.reset_classifier would silently replace the text-guided head by a plain layer; call "
        "unwrap_model(model) first, then reset and wrap again."
    )
