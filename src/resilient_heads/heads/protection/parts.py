"""What guards are made of: modules without parameters, whose outputs can be struck."""

import torch
from torch import Tensor, nn

from resilient_heads.heads.protection import algebra


class Bounded(nn.Module):
    """Values held against a limit."""

    def forward(self, values: Tensor, limit: Tensor) -> Tensor:
        """Return the values, 0 where they are beyond the limit or NaN."""
        return algebra.replace_beyond(values, limit)


class BoundedNorm(nn.Module):
    """A norm held between its smallest value and a limit."""

    def forward(self, norm: Tensor, limit: Tensor, smallest: float) -> Tensor:
        """Return the norm, brought into its range."""
        return algebra.clamp_norm(norm, smallest, limit)


class Choice(nn.Module):
    """The first computation, or for samples with an alarm the second where it differs."""

    def forward(self, first: Tensor, second: Tensor, excess: Tensor, dim: int) -> Tensor:
        """Return logits; any ``excess`` along ``dim`` that is not at most 0, NaN included, is an alarm."""
        fine = (excess <= 0).all(dim=dim, keepdim=True)
        # A negated copy gives -0 for 0, and NaN of the other sign.
        same = (first == second) | (first.isnan() & second.isnan())
        return torch.where(fine | same, first, second)


class Vote(nn.Module):
    """The elementwise median of three computations."""

    def forward(self, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
        """Return logits."""
        return algebra.median_of_three(first, second, third)


class Check(nn.Module):
    """The sum of a result against what it has to be."""

    def __init__(self) -> None:
        super().__init__()
        self.expected = nn.Identity()
        self.total = nn.Identity()
        self.tolerance = nn.Identity()

    def forward(self, expected: Tensor, total: Tensor, tolerance: Tensor) -> Tensor:
        """Return by how much the difference exceeds the tolerance; NaN where either is no number."""
        excess: Tensor = (self.expected(expected) - self.total(total)).abs() - self.tolerance(tolerance)
        return excess
