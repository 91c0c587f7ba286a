"""Limits for range restriction, sums for ABFT checksums, and the median: pure functions of tensors.

Range restriction: every output of a product ``y = W x + b`` keeps to ``|y_j| <= ||w_j|| ||x|| + |b_j|`` (Cauchy and
Schwarz), and so does every partial sum. Rounding adds at most a factor ``1 + gamma`` (Higham, *Accuracy and Stability
of Numerical Algorithms*, 2002, section 3.1).

ABFT checksum: the outputs sum to ``(sum of rows of W) x + sum(b)`` (Huang and Abraham, *Algorithm-Based Fault Tolerance
for Matrix Operations*, 1984).

Tolerance: rounding errors are modelled as independent with mean 0 (Higham and Mary, *A New Approach to Probabilistic
Rounding Error Analysis*, 2019). With ``u`` the unit roundoff and K the inner size of the product, the sum of K errors
stays within ``lambda sqrt(K) u`` with probability ``1 - 2 exp(-lambda^2 / 2)``.

In all functions ``dim`` is the dimension of features and outputs, a weight is ``(O, K)``, a bias ``(O,)`` or None, and
``input_norm`` is ``||x||`` with size 1 along ``dim``.
"""

import math

import torch
from torch import Tensor

SMALLEST_NORM = 2.0**-14
"""Divisor of latent vectors that are shorter: the smallest normal float16, so that it is above 0 in every format."""

_LAMBDA = 6.0
"""Standard deviations of rounding that raise no alarm; more has a probability below 4e-8. A false alarm is harmless."""


def wide(tensor: Tensor) -> torch.dtype:
    """Return the dtype for limits and sums: float64, in which squares neither overflow nor vanish, where it exists."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def norm_of(x: Tensor, dim: int) -> Tensor:
    """Return ``||x||`` over ``dim``, which stays as a dimension of size 1, in the wide dtype."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=wide(x))
    return norm


def product_limit(input_norm: Tensor, weight: Tensor, bias: Tensor | None, like: Tensor, dim: int) -> Tensor:
    """Return the largest magnitude of each fault-free output of a product; ``like`` is the product."""
    limit = input_norm * _along(torch.linalg.vector_norm(weight, dim=1, dtype=input_norm.dtype), input_norm, dim)
    if bias is not None:
        limit = limit + _along(bias.abs().to(input_norm.dtype), input_norm, dim)
    return _slack(limit, like, weight.shape[1])


def norm_limit(input_norm: Tensor, weight: Tensor, bias: Tensor | None, like: Tensor) -> Tensor:
    """Return the largest fault-free norm of a product, at least ``SMALLEST_NORM``; ``like`` is the product."""
    limit = _largest_norm(input_norm, weight, bias).clamp_min(SMALLEST_NORM)
    limit = _slack(limit, like, weight.shape[0] + weight.shape[1])
    # The norm is infinite without a fault where the sum of squares overflows.
    added = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.where(limit > math.sqrt(torch.finfo(added).max) / 2, math.inf, limit)


def unit_limit(norm_limit: Tensor, like: Tensor, size: int) -> Tensor:
    """Return the largest magnitude in a vector of norm 1; infinite where the norm has no limit."""
    limit = 1 + 2 * _unit_roundoff(like) + 4 * (size + 8) * _accumulation_roundoff(like)
    return torch.where(norm_limit < math.inf, limit, math.inf)


def ratio_limit(limit: Tensor, norm: Tensor) -> Tensor:
    """Return the limit of values after division by a norm."""
    return limit / norm.to(limit.dtype) * (1 + 2.0**-6)


def _slack(limit: Tensor, like: Tensor, size: int) -> Tensor:
    """Return a limit plus what rounding adds; infinite where the result's dtype overflows before the limit."""
    finfo = torch.finfo(like.dtype)
    # Matrix units may round their inputs to bfloat16 (2 x 2**-8), the coarsest rounding that PyTorch permits.
    factor = 1 + 2.0**-6 + 2 * _unit_roundoff(like) + 4 * (size + 8) * _accumulation_roundoff(like)
    widened = limit * factor + finfo.tiny
    widened = torch.where(widened > finfo.max, math.inf, widened)
    return widened.to(torch.float32 if like.dtype.itemsize <= 4 else torch.float64)


def replace_beyond(values: Tensor, limit: Tensor) -> Tensor:
    """Replace NaN and values beyond a limit by 0; keep every value whose limit is infinite or NaN."""
    inside = (values.abs() <= limit) | ~(limit < math.inf)
    return torch.where(inside, values, 0.0)


def clamp_norm(norm: Tensor, limit: Tensor) -> Tensor:
    """Clamp a norm to ``SMALLEST_NORM`` and its limit; NaN becomes ``SMALLEST_NORM``."""
    inside = ((norm >= SMALLEST_NORM) & (norm <= limit)) | ~(limit < math.inf)
    return torch.where(inside, norm, torch.where(norm > limit, limit.to(norm.dtype), SMALLEST_NORM))


def total(values: Tensor, dim: int) -> Tensor:
    """Return the sum over ``dim``, in the wide dtype."""
    return values.sum(dim=dim, keepdim=True, dtype=wide(values))


def expected_total(x: Tensor, weight: Tensor, bias: Tensor | None, dim: int) -> Tensor:
    """Return the ABFT checksum of a product: what its outputs must sum to."""
    rows = _along(weight.sum(dim=0, dtype=wide(x)), x, dim)
    expected = (x * rows).sum(dim=dim, keepdim=True)
    return expected if bias is None else expected + bias.sum(dtype=wide(x))


def product_tolerance(input_norm: Tensor, weight: Tensor, bias: Tensor | None, result: Tensor, dim: int) -> Tensor:
    """Return by how much rounding may change the sum of a product; ``result`` is the product."""
    outputs, inner = weight.shape
    inputs = _input_roundoff(result) * (2 * outputs) ** 0.5
    relative = _accumulation_roundoff(result) * (inner + 1) ** 0.5 * _of_sums(result, outputs) + inputs
    tolerance: Tensor = _LAMBDA * relative * _largest_norm(input_norm, weight, bias) + rounding_tolerance(result, dim)
    return tolerance


def rounding_tolerance(result: Tensor, dim: int) -> Tensor:
    """Return by how much the sum may change when each value is rounded once."""
    relative = _LAMBDA * _unit_roundoff(result) * _of_sums(result, result.shape[dim])
    return relative * norm_of(result, dim)


def norm_tolerance(norm: Tensor, size: int) -> Tensor:
    """Return by how much rounding may change a norm of ``size`` values."""
    relative = _unit_roundoff(norm) + 2 * _accumulation_roundoff(norm) * size**0.5
    tolerance: Tensor = _LAMBDA * relative * norm.to(wide(norm))
    return tolerance


def equal(one: Tensor, other: Tensor) -> Tensor:
    """Return where two tensors are equal; NaN equals NaN."""
    return (one == other) | (one.isnan() & other.isnan())


def median_of_three(first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """Return the elementwise median (TMR); a NaN counts as one of the two values that are left out.

    Two equal values outvote the third. Only comparisons choose, so that a flip in one mask changes nothing.
    """
    low = torch.where(second < first, second, first)
    high = torch.where(second < first, first, second)
    low = torch.where(low.isnan(), high, low)
    high = torch.where(high.isnan(), low, high)
    middle = torch.where(third < high, third, high)
    middle = torch.where(middle > low, middle, low)
    pair = torch.where(second == third, second, middle)
    return torch.where((first == second) | (first == third), first, pair)


def _largest_norm(input_norm: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``||W|| ||x|| + ||b||`` with the Frobenius norm of W: no product without rounding has a larger norm."""
    largest: Tensor = input_norm * torch.linalg.vector_norm(weight, dtype=input_norm.dtype)
    return largest if bias is None else largest + torch.linalg.vector_norm(bias, dtype=input_norm.dtype)


def _of_sums(result: Tensor, size: int) -> float:
    """Return how much more rounding a sum of ``size`` values has if its dtype is not wider than theirs."""
    return 2 * size**0.5 if wide(result) == result.dtype else 1.0


def _along(values: Tensor, like: Tensor, dim: int) -> Tensor:
    """Return a vector in the shape that broadcasts along one dimension of a tensor."""
    if dim == -1:
        return values
    return values.reshape([-1 if at == dim else 1 for at in range(like.ndim)])


def _unit_roundoff(result: Tensor) -> float:
    """Return the unit roundoff of a result's dtype."""
    return torch.finfo(result.dtype).eps / 2


def _accumulation_roundoff(result: Tensor) -> float:
    """Return the unit roundoff of the dtype in which products are summed: float32 or wider."""
    return torch.finfo(result.dtype if result.dtype.itemsize > 4 else torch.float32).eps / 2


def _input_roundoff(result: Tensor) -> float:
    """Return the roundoff of float32 inputs that matrix units may round."""
    if result.dtype != torch.float32:
        return 0.0
    if result.device.type == "cuda":  # TensorFloat-32, the default of convolutions
        return 2.0**-11 if result.ndim == 4 or _reduced_precision() else 0.0
    return 2.0**-9 if _reduced_precision() else 0.0


def _reduced_precision() -> bool:
    """Whether float32 products may round their inputs to a narrower format."""
    return torch.get_float32_matmul_precision() != "highest"


# What torch.compiler.assume_constant_result sets; calling it would import the compiler (0.9 s) with this module.
_reduced_precision._dynamo_marked_constant = True  # type: ignore[attr-defined]
