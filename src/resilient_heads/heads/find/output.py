"""Refuse a model whose output is not one logit vector a sample: detection, segmentation, sequences, features."""

from collections.abc import Sequence

from torch import nn

from resilient_heads.errors import ModelError
from resilient_heads.heads.find.candidates import candidates
from resilient_heads.heads.find.trace import Trace
from resilient_heads.heads.wrappers import Action


def check_vectors(model: nn.Module, seen: Trace, *, guessed: bool) -> None:
    """Raise ModelError if no tensor of the output holds one vector a sample.

    Args:
        model: The model.
        seen: Its trace.
        guessed: Whether the trace ran on a guessed input.
    """
    if not any(_is_vector(shape, seen) for shape in seen.shapes):
        hint = " If that input is not the model's, pass example_input=." if guessed else ""
        raise ModelError(
            f"{type(model).__name__} gives {_named(seen.shapes)} for an input {seen.inputs}; expected one logit vector "
            f"a sample, ({seen.inputs[0]}, C). A text-guided head needs a classifier.{hint}"
        )


def check_only_vector(model: nn.Module, seen: Trace) -> None:
    """Raise ModelError if the output has several tensors, or the shape of the input: what gives class scores is open.

    Call it only where neither the user nor the model's library names the classifier.
    """
    given = [shape for shape, layers in zip(seen.shapes, seen.sources, strict=True) if layers]
    if len(given) > 1:
        giving = f" (what gives the output: {', '.join(seen.last)})" if seen.last else ""
        raise ModelError(
            f"{type(model).__name__} gives {len(given)} tensors, {_named(given)}; expected one logit vector a sample. "
            f'If one of them holds class scores, name the layer that gives it: classifier="..."{giving}.'
        )
    if seen.shapes[:1] == (seen.inputs,):
        raise ModelError(
            f"{type(model).__name__} gives an output of its input's shape, {seen.inputs}, as an autoencoder does. If "
            f"these are class scores, name the layer that gives them. {candidates(model)}"
        )


def check_reaches_vectors(model: nn.Module, seen: Trace, layers: Sequence[str]) -> None:
    """Raise ModelError if a tensor of the output that one of the layers reaches is not its C scores for each sample."""
    for layer in layers:
        for shape, sources in zip(seen.shapes, seen.sources, strict=True):
            classes = (seen.direct or {}).get(layer)
            if layer in sources and not (_is_vector(shape, seen) and shape[1] == classes):
                raise ModelError(
                    f"{layer!r} gives the output {_named([shape])} of {type(model).__name__} for an input "
                    f"{seen.inputs}; expected one logit vector a sample, ({seen.inputs[0]}, {classes}). If that input "
                    "is not the model's, pass example_input=."
                )


def untraced(model: nn.Module, action: Action) -> ModelError:
    """Return the error for a model of which nothing shows where its class scores come from."""
    return ModelError(
        f"Nothing shows that {type(model).__name__} is a classifier: no library names its classifier, and it does not "
        f"run on one batch without values. To {action} it, pass a batch that it accepts as example_input=, or name the "
        f"layer that gives one logit vector a sample. {candidates(model)}"
    )


def _is_vector(shape: tuple[int, ...], seen: Trace) -> bool:
    """Whether a tensor of the output is ``(N, C)``, or ``(N, C, 1, 1)`` as fully convolutional classifiers give it."""
    return len(shape) > 1 and shape[0] == seen.inputs[0] and all(size == 1 for size in shape[2:])


def _named(shapes: Sequence[tuple[int, ...]]) -> str:
    """Return up to four shapes as text."""
    words = ", ".join(f"({', '.join(map(str, shape))})" for shape in shapes[:4])
    return (words if len(shapes) <= 4 else f"{words} and {len(shapes) - 4} more") or "no tensor"
