"""Fault models as JSON-able values, and back."""

import dataclasses
from typing import Any

from resilient_heads.injection.faults import effects, elements
from resilient_heads.injection.faults.fault_model import FaultModel
from resilient_heads.injection.formats import floating, integer, shared

_KINDS = {
    kind.__name__: kind
    for kind in (
        FaultModel,
        elements.RandomElements,
        elements.ErrorRate,
        elements.AllElements,
        effects.Flip,
        effects.StuckAt,
        effects.RandomWord,
        effects.RandomValue,
        effects.SetValue,
        effects.Negate,
        effects.LayerMaximum,
        floating.FloatingPoint,
        integer.FixedPoint,
        integer.AffineInteger,
        shared.BlockFloat,
        shared.AdaptivFloat,
    )
}


def as_record(value: Any) -> Any:
    """Return a fault model, or a part of one, as JSON-able values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: as_record(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    if isinstance(value, list | tuple):
        return [as_record(item) for item in value]
    return value


def from_record(content: Any) -> Any:
    """Undo :func:`as_record`; KeyError, TypeError or ValueError where it is something else."""
    if isinstance(content, dict):
        fields = {name: from_record(value) for name, value in content.items() if name != "kind"}
        return _KINDS[content["kind"]](**fields)
    if isinstance(content, list):
        return tuple(from_record(item) for item in content)
    return content
