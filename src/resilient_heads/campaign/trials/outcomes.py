"""What one trial yields."""

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from resilient_heads.incremental.recording.words import words
from resilient_heads.statistics.functional import confidence, delta_loss, rank


class Outcome(IntEnum):
    """How a trial ended; every trial has exactly one outcome.

    >>> [outcome.name for outcome in Outcome]
    ['MASKED', 'TOLERABLE', 'SDC', 'DUE']
    """

    MASKED = 0
    """The logits are bit-identical to the golden ones."""
    TOLERABLE = 1
    """Some logit changed, the golden top-1 class still scores highest."""
    SDC = 2
    """Silent data corruption: another class scores as high as the golden top-1 class or higher, and it is no DUE."""
    DUE = 3
    """Detectable error: a logit is NaN or infinite that was not so in the golden run, or the model raised an error."""


@dataclass(frozen=True, slots=True, eq=False)
class Judgement:
    """The outcomes of N trials.

    Attributes:
        outcome: ``(N,)`` uint8, :class:`Outcome`.
        delta_loss: ``(N,)`` float64, in nats; NaN or Inf where the logits give that.
        predicted: ``(N,)`` int64, faulty top-1 class (meaningless for a DUE).
        rank: ``(N,)`` int64, how many other classes score as high as the golden top-1 class or higher.
        confidence_change: ``(N,)`` float64, relative change of the golden top-1 class's softmax probability.
    """

    outcome: Tensor
    delta_loss: Tensor
    predicted: Tensor
    rank: Tensor
    confidence_change: Tensor


def judge(golden: Tensor, faulty: Tensor, target: Tensor) -> Judgement:
    """Compare faulty logits with golden ones.

    Args:
        golden: ``(N, C)``, finite, or -Inf for classes that the model excludes.
        faulty: ``(N, C)``; NaN where the model raised an error.
        target: ``(N,)`` int64, the true classes.

    Source: outcome classes after Li et al., *Understanding error propagation in deep learning neural network
    accelerators and applications*, SC 2017.
    """
    top = golden.argmax(dim=1)
    outranked = rank(faulty, top)
    before = confidence(golden, top)
    return Judgement(
        outcome=_outcome(golden, faulty, outranked > 0),
        delta_loss=_one_nan(delta_loss(golden, faulty, target)),
        predicted=faulty.argmax(dim=1),
        rank=outranked,
        confidence_change=_one_nan((confidence(faulty, top) - before) / before),
    )


def classify(golden: Tensor, faulty: Tensor) -> Tensor:
    """Return the outcomes alone, ``(N,)`` uint8, as :func:`judge` gives them."""
    top = golden.argmax(dim=1, keepdim=True)
    golden_score = faulty.gather(1, top)
    # One score as high as the top's is the top itself; comparisons with NaN do not matter, such a trial is a DUE.
    return _outcome(golden, faulty, (faulty >= golden_score).sum(dim=1) > 1)


def _outcome(golden: Tensor, faulty: Tensor, outranked: Tensor) -> Tensor:
    """Return each trial's outcome, given where another class scores as high as the golden top-1 class."""
    outcome = torch.full_like(outranked, Outcome.TOLERABLE, dtype=torch.uint8)
    outcome[outranked] = Outcome.SDC
    same = words(faulty) == words(golden)
    outcome[~((faulty.abs() < torch.inf) | same).all(dim=1)] = Outcome.DUE  # NaN is no number below infinity
    outcome[same.all(dim=1)] = Outcome.MASKED
    return outcome


def _one_nan(values: Tensor) -> Tensor:
    """Return the values with one kind of NaN: its sign and payload depend on the path of a kernel."""
    return torch.where(values.isnan(), torch.nan, values)
