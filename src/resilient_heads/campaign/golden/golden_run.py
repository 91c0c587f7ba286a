"""Golden runs: the predictions of the fault-free model, and the ranges of its values."""

import dataclasses
import hashlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from resilient_heads.campaign.golden.data import Data, LabelledImages, collect_images
from resilient_heads.campaign.golden.digests import add_values, columns_sha256
from resilient_heads.errors import ForwardError, InjectionError, ModelError
from resilient_heads.evaluation import device_of, run_model
from resilient_heads.injection.sites.batches import first_images
from resilient_heads.injection.sites.hooks import watch_sites
from resilient_heads.injection.sites.site import Site
from resilient_heads.phases import phase
from resilient_heads.statistics.functional import cross_entropy, top2diff


@dataclass(frozen=True, slots=True, eq=False)
class GoldenRun:
    """The predictions of the fault-free model for I images.

    Attributes:
        labels: ``(I,)`` int64.
        predicted: ``(I,)`` int64, top-1 class.
        loss: ``(I,)`` float64, cross-entropy in nats.
        top2diff: ``(I,)`` float64, difference of the two largest softmax probabilities.
        eligible: ``(I,)`` bool, whether faults are injected into the image.
    """

    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    loss: NDArray[np.float64]
    top2diff: NDArray[np.float64]
    eligible: NDArray[np.bool_]

    def __repr__(self) -> str:
        counts = (
            f"{len(self.labels):,} images, {int(self.correct.sum()):,} correct, {int(self.eligible.sum()):,} eligible"
        )
        return f"<GoldenRun: {counts}>"

    @property
    def correct(self) -> NDArray[np.bool_]:
        """``(I,)``, whether top-1 is the label."""
        return np.equal(self.predicted, self.labels)

    @property
    def columns(self) -> dict[str, NDArray[np.generic]]:
        """The columns by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def sha256(self) -> str:
        """Digest of all columns."""
        return columns_sha256(self.columns)


def logits_of(model: nn.Module, images: Tensor, *, during: str = "the golden run") -> Tensor:
    """Run the model and return its logits, ``(N, C)``; ``during`` is what the pass is for, as errors name it.

    Raises:
        ForwardError: The model's own code raised an error.
        ModelError: The model gives no logits of shape ``(N, C)``.
    """
    output = run_model(model, images, during=during)
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        raise ModelError(
            f"{type(model).__name__} must give logits of shape (images, classes), so ({len(images)}, classes) for this "
            f"batch; it gives {_describe(logits)}. Pass a module whose forward returns the logits."
        )
    if not logits.is_floating_point():
        raise ModelError(f"{type(model).__name__} gives {logits.dtype}; expected logits, the scores before argmax.")
    return logits.clone()


def run_golden(model: nn.Module, data: LabelledImages, *, batch_size: int, min_top2diff: float) -> GoldenRun:
    """Run the fault-free model on every image, inside :func:`~resilient_heads.evaluation.evaluating`.

    Raises:
        InjectionError: The model classifies no image correctly, so no fault can corrupt a prediction.
        DataError: A label is not a class of the model.
        ModelError: The model has a single class.
    """
    device = device_of(model)
    logits: list[Tensor] = []
    with phase("golden run", total=len(data), unit="image") as advance:
        for images in torch.split(data.images, batch_size):
            logits.append(_run_in_batches(partial(logits_of, model), images.to(device), batch_size).cpu())
            if len(logits) == 1:
                data.check_labels(logits[0].shape[1])
            advance(len(images))
    scores = torch.cat(logits)
    if scores.shape[1] < 2:
        raise ModelError(
            "The model has a single class, so no fault can change a prediction; expected at least 2 classes."
        )
    if _are_probabilities(scores):
        warnings.warn(
            "The model gives probabilities, not logits: losses and Top2Diff would be those of a softmax of a softmax. "
            "Remove the softmax at the model's end.",
            UserWarning,
            stacklevel=2,
        )
    loss, margin, predicted = cross_entropy(scores, data.labels), top2diff(scores), scores.argmax(dim=1)
    usable = (scores < torch.inf).all(dim=1)  # -Inf is the score of a class that the model excludes; NaN is no number
    eligible = (predicted == data.labels) & (margin > min_top2diff) & usable
    if not bool(eligible.any()):
        correct = int((predicted == data.labels).sum())
        raise InjectionError(_why_none(len(data), correct, int((~usable).sum()), min_top2diff))
    return GoldenRun(
        labels=data.labels.numpy(),
        predicted=predicted.numpy(),
        loss=loss.numpy(),
        top2diff=margin.numpy(),
        eligible=eligible.numpy(),
    )


def _are_probabilities(scores: Tensor) -> bool:
    """Whether each row is a softmax, to the precision of its dtype."""
    tolerance = max(1e-5, 4 * torch.finfo(scores.dtype).eps)
    return bool((scores >= 0).all() and ((scores.double().sum(dim=1) - 1).abs() <= tolerance).all())


def _why_none(images: int, correct: int, unusable: int, min_top2diff: float) -> str:
    """Return the error for data of which no image can have a fault."""
    if unusable == images:
        return (
            f"The logits of the fault-free model hold NaN or +Inf for all {images} images, so a fault could not make "
            "them worse; check weights and preprocessing. A class that the model excludes may have -Inf."
        )
    if not correct:
        return (
            f"The fault-free model classifies none of the {images} images correctly, so no fault can corrupt a "
            "prediction; check weights, labels and preprocessing."
        )
    return (
        f"The fault-free model classifies {correct} of {images} images correctly, but none of these has a Top2Diff "
        f"above {min_top2diff} and logits without NaN and +Inf ({unusable} images have such logits)."
    )


def _run_in_batches(run: Callable[[Tensor], Tensor], images: Tensor, batch_size: int) -> Tensor:
    """Run a model on images, and return their logits.

    Where the model refuses so many images at once, it runs on batches of ``batch_size``; images fill the last one up.
    """
    try:
        return run(images)
    except ForwardError as error:
        if len(images) == batch_size:
            raise
        try:
            parts = torch.split(images, batch_size)
            return torch.cat([run(first_images(part, batch_size))[: len(part)] for part in parts])
        except ForwardError:
            raise error from error.__cause__


@dataclass(frozen=True, slots=True)
class Ranges:
    """The ranges of values that a range detector accepts.

    Attributes:
        limits: Largest absolute value of each site's output, by the site's name.
        sha256: Digest of the calibration images.
    """

    limits: dict[str, float]
    sha256: str


def profile_ranges(model: nn.Module, data: Data, sites: tuple[Site, ...], *, batch_size: int) -> Ranges:
    """Find the largest absolute value that each site's output takes over the calibration images.

    Args:
        model: The model in evaluation mode, without gradients.
        data: Batches of images, with or without labels.
        sites: The sites whose outputs are measured.
        batch_size: Images in a batch, for a model that refuses the batches of the data.

    Raises:
        DataError: There are no images.
        ForwardError: The model cannot run on the images.
        InjectionError: A site's output is not finite.
    """
    device = device_of(model)
    digest = hashlib.sha256()
    largest = {site.name: torch.zeros((), device=device, dtype=torch.float64) for site in sites}

    def note(name: str, output: Tensor) -> None:
        largest[name] = torch.maximum(largest[name], output.detach().abs().amax().double())

    def run(images: Tensor) -> Tensor:
        with watch_sites(model, sites, note):
            return logits_of(model, images, during="the measurement of ranges")

    for images in collect_images(data, what="calibration"):
        add_values(digest, images)
        _run_in_batches(run, images.to(device), batch_size)
    limits = {name: float(value) for name, value in largest.items()}
    for name, value in limits.items():
        if not np.isfinite(value):
            raise InjectionError(f"The fault-free output of {name!r} holds NaN or Inf on the calibration images.")
    return Ranges(limits, digest.hexdigest())


def _describe(output: object) -> str:
    """Return what a model returned, as an error shows it."""
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} with the keys {', '.join(map(repr, output))}"
    parts = f" of {len(output)} values" if isinstance(output, tuple | list) else ""
    return f"a {type(output).__name__}{parts}"
