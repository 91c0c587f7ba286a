"""Number formats that torch has no dtype for, to inject into and to emulate."""

from resilient_heads.injection.formats.base import NumberFormat
from resilient_heads.injection.formats.floating import FloatingPoint
from resilient_heads.injection.formats.integer import AffineInteger, FixedPoint
from resilient_heads.injection.formats.shared import AdaptivFloat, BlockFloat

__all__ = [
    "AdaptivFloat",
    "AffineInteger",
    "BlockFloat",
    "FixedPoint",
    "FloatingPoint",
    "NumberFormat",
]
