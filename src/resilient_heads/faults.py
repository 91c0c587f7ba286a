"""Parts of faults: which tensor, which elements of it, what happens to them."""

from resilient_heads.injection.apply.verification import InjectionReport
from resilient_heads.injection.faults.effects import (
    Flip,
    LayerMaximum,
    Negate,
    RandomValue,
    RandomWord,
    SetValue,
    StuckAt,
)
from resilient_heads.injection.faults.elements import AllElements, ErrorRate, IndexedElements, RandomElements
from resilient_heads.injection.faults.targets import Input, Output, StoredTensor

__all__ = [
    "AllElements",
    "ErrorRate",
    "Flip",
    "IndexedElements",
    "InjectionReport",
    "Input",
    "LayerMaximum",
    "Negate",
    "Output",
    "RandomElements",
    "RandomValue",
    "RandomWord",
    "SetValue",
    "StoredTensor",
    "StuckAt",
]
