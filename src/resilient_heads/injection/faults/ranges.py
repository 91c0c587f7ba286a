"""Range detectors: what becomes of a struck value outside of its layer's range."""

from typing import Literal

import torch
from torch import Tensor

from resilient_heads.errors import FaultError

RangeDetector = Literal["clamp", "zero"]


def apply_range(values: Tensor, range_limit: float | None, detector: RangeDetector = "clamp") -> Tensor:
    """Apply a range detector by name; a limit of None leaves the values alone.

    Raises:
        FaultError: A limit that is negative or NaN, or a detector of another name.
    """
    if detector not in ("clamp", "zero"):
        raise FaultError(f'A range detector is "clamp" or "zero" (range_limit=None for none), found {detector!r}.')
    if range_limit is None:
        return values
    return clamp_to_range(values, range_limit) if detector == "clamp" else zero_out_of_range(values, range_limit)


def clamp_to_range(values: Tensor, range_limit: float) -> Tensor:
    """Replace NaN, infinite and out-of-range values by the limit with their sign (NaN: positive).

    Args:
        values: Any floating tensor.
        range_limit: Largest magnitude, at least 0; one beyond the format's range stands for its largest value.

    Raises:
        FaultError: A limit that is negative or NaN.

    Source: Mahmoud et al., *GoldenEye*, DSN 2022.
    """
    wide = _checked(values, range_limit)
    range_limit = min(range_limit, torch.finfo(values.dtype).max)
    clamped = torch.where(wide.isnan(), torch.full_like(wide, range_limit), wide.clamp(-range_limit, range_limit))
    return clamped.to(values.dtype)


def zero_out_of_range(values: Tensor, range_limit: float) -> Tensor:
    """Replace NaN, infinite and out-of-range values by 0.

    Args:
        values: Any floating tensor.
        range_limit: Largest magnitude that stays, at least 0.

    Raises:
        FaultError: A limit that is negative or NaN.

    Source: Geissler et al., *Towards a Safety Case for Hardware Fault Tolerance in Convolutional Neural Networks Using
    Activation Range Supervision*, 2021 (range supervision that sets to zero what Ranger clamps).
    """
    wide = _checked(values, range_limit)
    inside = wide.isfinite() & (wide.abs() <= range_limit)
    return torch.where(inside, wide, torch.zeros_like(wide)).to(values.dtype)


def _checked(values: Tensor, range_limit: float) -> Tensor:
    """Return the values in a dtype that can be compared, after a look at the limit."""
    if not range_limit >= 0:
        raise FaultError(f"The range of a layer must be at least 0, found {range_limit}.")
    if not values.dtype.is_floating_point:
        raise FaultError(f"A range detector looks at floating values, found {values.dtype}.")
    return values.float() if values.dtype.itemsize == 1 else values
