"""Bounds, sums and their tolerances, and the median: pure functions of tensors.

With ``u`` the unit roundoff, a product ``y = W x + b`` of inner size K, as computed, differs from the true one by
rounding alone. For every output j, by Cauchy and Schwarz, ``|y_j| <= ||w_j|| ||x|| + |b_j|``, and so is every partial
sum; rounding adds at most a factor ``1 + gamma`` (Higham, *Accuracy and Stability of Numerical Algorithms*, 2002,
section 3.1). The sum of all outputs has to be ``(sum of rows) x + sum(b)`` (Huang and Abraham, *Algorithm-Based Fault
Tolerance for Matrix Operations*, 1984). Rounding errors are taken as independent with mean 0 (Higham and Mary, *A New
Approach to Probabilistic Rounding Error Analysis*, 2019), so a sum of K of them stays within ``lambda sqrt(K) u`` with
probability ``1 - 2 exp(-lambda^2 / 2)``.
"""

import math

import torch
from torch import Tensor

_LAMBDA = 6.0
"""How many standard deviations of rounding are no alarm; beyond lies less than 4e-8. A false alarm harms nothing."""


def wide(tensor: Tensor) -> torch.dtype:
    """Return the dtype for bounds and sums: squares neither overflow nor vanish in it, where the device has it."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def norm_of(x: Tensor, dim: int) -> Tensor:
    """Return ``||x||`` over ``dim``, kept as a dimension of size 1, in the wide dtype."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=wide(x))
    return norm


def product_limit(reach: Tensor, weight: Tensor, bias: Tensor | None, like: Tensor, dim: int) -> Tensor:
    """Return what no output of a product can exceed.

    Args:
        reach: ``||x||``, size 1 along ``dim``.
        weight: ``(O, K)``.
        bias: ``(O,)`` or None.
        like: The product, for its dtype and device.
        dim: The dimension of the outputs.
    """
    limit = reach * _along(torch.linalg.vector_norm(weight, dim=1, dtype=reach.dtype), reach, dim)
    if bias is not None:
        limit = limit + _along(bias.abs().to(reach.dtype), reach, dim)
    return _slack(limit, like, weight.shape[1])


def norm_limit(reach: Tensor, weight: Tensor, bias: Tensor | None, like: Tensor, smallest: float) -> Tensor:
    """Return what the norm of a product cannot exceed: ``||W|| ||x|| + ||b||`` with Frobenius's norm of W."""
    limit = reach * torch.linalg.vector_norm(weight, dtype=reach.dtype)
    if bias is not None:
        limit = limit + torch.linalg.vector_norm(bias, dtype=reach.dtype)
    limit = _slack(limit.clamp_min(smallest), like, weight.shape[0] + weight.shape[1])
    # Where squares leave the format in which they are added up, the norm is infinite though no value is.
    added = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.where(limit > math.sqrt(torch.finfo(added).max) / 2, math.inf, limit)


def unit_limit(norm_limit: Tensor, like: Tensor, size: int) -> Tensor:
    """Return what no value of a vector of norm 1 can exceed; no limit where the norm has none."""
    limit = 1 + 2 * _unit_roundoff(like) + 4 * (size + 8) * _accumulation_roundoff(like)
    return torch.where(norm_limit < math.inf, limit, math.inf)


def ratio_limit(limit: Tensor, norm: Tensor) -> Tensor:
    """Return what values within a limit cannot exceed after division by a norm."""
    return limit / norm.to(limit.dtype) * (1 + 2.0**-6)


def _slack(limit: Tensor, like: Tensor, size: int) -> Tensor:
    """Widen a limit by what rounding adds; infinite where the result's format ends before it."""
    finfo = torch.finfo(like.dtype)
    # Matrix units may round their inputs to bfloat16 (2 x 2**-8), which is the most that PyTorch ever lets them do.
    factor = 1 + 2.0**-6 + 2 * _unit_roundoff(like) + 4 * (size + 8) * _accumulation_roundoff(like)
    widened = limit * factor + finfo.tiny
    widened = torch.where(widened > finfo.max, math.inf, widened)
    return widened.to(torch.float32 if like.dtype.itemsize <= 4 else torch.float64)


def replace_beyond(values: Tensor, limit: Tensor) -> Tensor:
    """Replace NaN and values beyond a limit by 0; where the limit is infinite or NaN, as the input is, all stay."""
    inside = (values.abs() <= limit) | ~(limit < math.inf)
    return torch.where(inside, values, 0.0)


def clamp_norm(norm: Tensor, smallest: float, limit: Tensor) -> Tensor:
    """Bring a norm between its smallest value and its limit; NaN becomes the smallest."""
    inside = ((norm >= smallest) & (norm <= limit)) | ~(limit < math.inf)
    return torch.where(inside, norm, torch.where(norm > limit, limit.to(norm.dtype), smallest))


def total(values: Tensor, dim: int) -> Tensor:
    """Return the sum over ``dim``, in the wide dtype."""
    return values.sum(dim=dim, keepdim=True, dtype=wide(values))


def expected_total(x: Tensor, weight: Tensor, bias: Tensor | None, dim: int) -> Tensor:
    """Return what the outputs of a product have to sum to.

    Args:
        x: Size K along ``dim``.
        weight: ``(O, K)``.
        bias: ``(O,)`` or None.
        dim: The dimension of the features.
    """
    rows = _along(weight.sum(dim=0, dtype=wide(x)), x, dim)
    expected = (x * rows).sum(dim=dim, keepdim=True)
    return expected if bias is None else expected + bias.sum(dtype=wide(x))


def product_tolerance(reach: Tensor, weight: Tensor, bias: Tensor | None, result: Tensor, dim: int) -> Tensor:
    """Return how far the sum of a product may be off by rounding.

    Args:
        reach: ``||x||``, size 1 along ``dim``.
        weight: ``(O, K)``.
        bias: ``(O,)`` or None.
        result: The product, size O along ``dim``.
        dim: The dimension of the features.
    """
    largest = reach * torch.linalg.vector_norm(weight, dtype=reach.dtype)
    if bias is not None:
        largest = largest + torch.linalg.vector_norm(bias, dtype=reach.dtype)
    outputs, inner = weight.shape
    inputs = _input_roundoff(result) * (2 * outputs) ** 0.5
    share = _accumulation_roundoff(result) * (inner + 1) ** 0.5 * _of_sums(result, outputs) + inputs
    tolerance: Tensor = _LAMBDA * share * largest + rounding_tolerance(result, dim)
    return tolerance


def rounding_tolerance(result: Tensor, dim: int) -> Tensor:
    """Return how far the sum of values may be off that were each rounded once."""
    share = _LAMBDA * _unit_roundoff(result) * _of_sums(result, result.shape[dim])
    return share * norm_of(result, dim)


def norm_tolerance(norm: Tensor, size: int) -> Tensor:
    """Return how far a norm of ``size`` values may be off."""
    share = _unit_roundoff(norm) + 2 * _accumulation_roundoff(norm) * size**0.5
    tolerance: Tensor = _LAMBDA * share * norm.to(wide(norm))
    return tolerance


def median_of_three(first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """Return the elementwise median; a NaN counts as one of the two that are left out.

    Where two agree it is their value, chosen by comparisons alone, so that no flip in a mask matters.
    """
    low = torch.where(second < first, second, first)
    high = torch.where(second < first, first, second)
    low = torch.where(low.isnan(), high, low)
    high = torch.where(high.isnan(), low, high)
    middle = torch.where(third < high, third, high)
    middle = torch.where(middle > low, middle, low)
    pair = torch.where(second == third, second, middle)
    return torch.where((first == second) | (first == third), first, pair)


def _of_sums(result: Tensor, size: int) -> float:
    """Return the factor by which adding up ``size`` values adds to their own rounding, where sums are not wider."""
    return 2 * size**0.5 if wide(result) == result.dtype else 1.0


def _along(values: Tensor, like: Tensor, dim: int) -> Tensor:
    """Return a vector shaped to broadcast along one dimension of a tensor."""
    if dim == -1:
        return values
    return values.reshape([-1 if at == dim else 1 for at in range(like.ndim)])


def _unit_roundoff(result: Tensor) -> float:
    """Return u of a result's dtype."""
    return torch.finfo(result.dtype).eps / 2


def _accumulation_roundoff(result: Tensor) -> float:
    """Return u of the dtype in which products are added up: float32 for anything narrower."""
    return torch.finfo(result.dtype if result.dtype.itemsize > 4 else torch.float32).eps / 2


def _input_roundoff(result: Tensor) -> float:
    """Return the rounding of inputs that matrix units are allowed for float32."""
    if result.dtype != torch.float32:
        return 0.0
    if result.device.type == "cuda":  # TensorFloat-32, for convolutions unless told otherwise
        return 2.0**-11 if result.ndim == 4 or _reduced_precision() else 0.0
    return 2.0**-9 if _reduced_precision() else 0.0


def _reduced_precision() -> bool:
    """Whether products of float32 may be taken in a narrower format."""
    return torch.get_float32_matmul_precision() != "highest"


# What torch.compiler.assume_constant_result sets; calling it would import the compiler (0.9 s) with this module.
_reduced_precision._dynamo_marked_constant = True  # type: ignore[attr-defined]
