"""A model with its preprocessing and the names of its classes."""

from dataclasses import dataclass

from torch import nn

from resilient_heads.inputs.class_order import Labels
from resilient_heads.inputs.preprocessing import Preprocessing


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedModel:
    """A model and what its library knows about it.

    Attributes:
        model: The model in evaluation mode, on the CPU.
        preprocessing: The preprocessing of its images.
        labels: Names of its classes; None if unknown.
    """

    model: nn.Module
    preprocessing: Preprocessing
    labels: Labels | None = None
