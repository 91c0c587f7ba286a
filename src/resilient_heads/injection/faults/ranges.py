"""Range detectors: what replaces a faulty value outside of its layer's range."""

from typing import Literal

import torch
from torch import Tensor

from resilient_heads.checks import one_of, real_number
from resilient_heads.errors import FaultError

RangeDetector = Literal["clamp", "zero"]


def apply_range(values: Tensor, range_limit: float | None, detector: RangeDetector = "clamp") -> Tensor:
    """Return the values as a range detector leaves them; ``range_limit=None`` returns them unchanged.

    Raises:
        ArgumentError: A range_limit that is negative or NaN, or an unknown detector.
        FaultError: Values that are not floating.
    """
    one_of("range_detector", detector, ("clamp", "zero"))
    if range_limit is None:
        return values
    return clamp_to_range(values, range_limit) if detector == "clamp" else zero_out_of_range(values, range_limit)


def clamp_to_range(values: Tensor, range_limit: float) -> Tensor:
    """Replace NaN, infinite and out-of-range values by the range limit with the value's sign (NaN: positive).

    Args:
        values: Any floating tensor.
        range_limit: Largest magnitude, at least 0. A limit beyond the dtype's range means its largest value.

    Raises:
        ArgumentError: A range_limit that is negative or NaN.
        FaultError: Values that are not floating.

    Source: Mahmoud et al., *GoldenEye*, DSN 2022.

    >>> clamp_to_range(torch.tensor([0.5, -9.0, torch.nan]), 2.0)
    tensor([ 0.5000, -2.0000,  2.0000])
    """
    wide = _comparable(values, range_limit)
    limit = min(range_limit, torch.finfo(values.dtype).max)
    clamped = torch.where(wide.isnan(), torch.full_like(wide, limit), wide.clamp(-limit, limit))
    return clamped.to(values.dtype)


def zero_out_of_range(values: Tensor, range_limit: float) -> Tensor:
    """Replace NaN, infinite and out-of-range values by 0.

    Args:
        values: Any floating tensor.
        range_limit: Largest magnitude that stays, at least 0.

    Raises:
        ArgumentError: A range_limit that is negative or NaN.
        FaultError: Values that are not floating.

    Source: Geissler et al., *Towards a Safety Case for Hardware Fault Tolerance in Convolutional Neural Networks Using
    Activation Range Supervision*, 2021. Their range supervision sets to zero what Ranger clamps.

    >>> zero_out_of_range(torch.tensor([0.5, -9.0, torch.nan]), 2.0)
    tensor([0.5000, 0.0000, 0.0000])
    """
    wide = _comparable(values, range_limit)
    inside = wide.isfinite() & (wide.abs() <= range_limit)
    return torch.where(inside, wide, torch.zeros_like(wide)).to(values.dtype)


def _comparable(values: Tensor, range_limit: float) -> Tensor:
    """Return the values in a dtype that torch can compare, after a check of the arguments."""
    real_number("range_limit", range_limit, least=0)
    if not values.dtype.is_floating_point:
        raise FaultError(f"A range detector needs floating values, found {values.dtype}.")
    return values.float() if values.dtype.itemsize == 1 else values
