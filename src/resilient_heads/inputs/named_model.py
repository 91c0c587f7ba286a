"""A model with its preprocessing and the names of its classes."""

from dataclasses import dataclass, field

from torch import Tensor, nn

from resilient_heads.inputs.class_order import Labels
from resilient_heads.inputs.preprocessing import Preprocessing


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedModel:
    """A model and what its library knows about it.

    Attributes:
        model: The model in evaluation mode, on the CPU.
        preprocessing: The preprocessing of its images.
        labels: Names of its classes; None if unknown.
        head: Tensors, by their full names, of a text-guided head that was saved in place of the model's classifier.
    """

    model: nn.Module
    preprocessing: Preprocessing
    labels: Labels | None = None
    head: dict[str, Tensor] = field(default_factory=dict)
