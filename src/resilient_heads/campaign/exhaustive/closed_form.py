"""What single flips do, worked out instead of executed, where a head's algebra allows it.

A head whose class scores rise with ``rows @ z`` keeps its top class t, after ``z_k`` has become ``z_k + delta``, while
``(S_t - S_c) + delta (P_tk - P_ck) > 0`` for every other class c, with ``S = P z``. So there is one interval for delta,
found once for all bits of a neuron. Where rounding could decide, nothing is decided here.
"""

import torch
from torch import Tensor

from resilient_heads.campaign.trials.outcomes import Outcome
from resilient_heads.injection.formats.bits import flip_each_bit

UNDECIDED = 255
_LARGEST = 1e15
"""Faulty values beyond this may leave the format on the way; they are executed."""


def logits_outcomes(logits: Tensor) -> Tensor:
    """Return the outcome of every flip in the logits themselves, exactly.

    Args:
        logits: ``(N, C)``, fault-free, without NaN and +Inf.

    Returns:
        ``(N, C, bits)`` uint8, :class:`Outcome`.
    """
    flipped = flip_each_bit(logits)
    top = logits.argmax(dim=1, keepdim=True)
    best = logits.gather(1, top)
    others = logits.scatter(1, top, -torch.inf).amax(dim=1, keepdim=True)
    is_top = torch.zeros_like(logits, dtype=torch.bool).scatter(1, top, True)
    lost = torch.where(is_top[..., None], flipped <= others[..., None], flipped >= best[..., None])
    outcome = torch.full_like(lost, Outcome.TOLERABLE, dtype=torch.uint8)
    outcome[lost] = Outcome.SDC
    outcome[~flipped.isfinite()] = Outcome.DUE
    return outcome


def score_outcomes(values: Tensor, rows: Tensor) -> Tensor:
    """Return the outcome of every flip in a tensor from which scores are rows times values.

    Args:
        values: ``(N, E)``, fault-free, float32.
        rows: ``(C, E)``.

    Returns:
        ``(N, E, bits)`` uint8: SDC, TOLERABLE (for masked ones, too) or :data:`UNDECIDED`.
    """
    weight = rows.double()
    scores = values.double() @ weight.T
    top = scores.argmax(dim=1)
    lead = scores.gather(1, top[:, None]) - scores
    lead.scatter_(1, top[:, None], torch.inf)
    norms = torch.linalg.vector_norm(weight, dim=1).amax()
    rounding = 8 * (rows.shape[1] * torch.finfo(values.dtype).eps + _input_rounding()) * norms
    fixed = rounding * torch.linalg.vector_norm(values.double(), dim=1, keepdim=True)
    change = flip_each_bit(values).double() - values.double()[..., None]
    outcome = torch.full_like(change, UNDECIDED, dtype=torch.uint8)
    for neuron in range(values.shape[1]):
        column = weight[:, neuron]
        slope = column[None] - column[top][:, None]  # by how much class c gains on the top class
        for sign in (1, -1):
            gain = sign * slope
            safe = ((lead - fixed) / (gain + rounding).clamp_min(0)).amin(dim=1, keepdim=True)
            sure = gain > rounding
            lost = torch.where(sure, (lead + fixed) / (gain - rounding).where(sure, 1.0), torch.inf).amin(
                dim=1, keepdim=True
            )
            size, ends = sign * change[:, neuron], outcome[:, neuron]
            ends[(size >= 0) & (size < safe)] = Outcome.TOLERABLE
            ends[(size > 0) & (size > lost)] = Outcome.SDC
    flipped = flip_each_bit(values)
    outcome[~(flipped.abs() < _LARGEST)] = UNDECIDED
    return outcome


def _input_rounding() -> float:
    """Return by how much products of float32 round their inputs first, where less than the highest precision is asked.

    "high" means TensorFloat-32 or two bfloat16, "medium" one bfloat16: 2**-9 each, and there are two inputs.
    """
    return 0.0 if torch.get_float32_matmul_precision() == "highest" else 2.0**-8
