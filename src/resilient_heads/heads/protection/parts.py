"""The parts of a guard: modules without parameters, whose outputs are fault sites."""

import torch
from torch import Tensor, nn

from resilient_heads.heads.protection import algebra


class Bounded(nn.Module):
    """Range restriction: values beyond their limit, and NaN, become 0."""

    def forward(self, values: Tensor, limit: Tensor) -> Tensor:
        """Return the values after range restriction."""
        return algebra.replace_beyond(values, limit)


class BoundedNorm(nn.Module):
    """Range restriction of a norm."""

    def forward(self, norm: Tensor, limit: Tensor) -> Tensor:
        """Return the norm, clamped to ``algebra.SMALLEST_NORM`` and ``limit``."""
        return algebra.clamp_norm(norm, limit)


class Check(nn.Module):
    """ABFT checksum: the sum of a tensor against the expected sum."""

    def __init__(self) -> None:
        super().__init__()
        self.expected = nn.Identity()
        self.total = nn.Identity()
        self.tolerance = nn.Identity()

    def forward(self, expected: Tensor, total: Tensor, tolerance: Tensor) -> Tensor:
        """Return by how much the difference exceeds the tolerance; NaN if either sum is NaN."""
        excess: Tensor = (self.expected(expected) - self.total(total)).abs() - self.tolerance(tolerance)
        return excess


class Choice(nn.Module):
    """The first computation; for rows of the batch with an alarm, the second one where the two differ."""

    def forward(self, first: Tensor, second: Tensor, excess: Tensor, dim: int) -> Tensor:
        """Return logits; an ``excess`` along ``dim`` that is above 0 or NaN is an alarm."""
        fine = (excess <= 0).all(dim=dim, keepdim=True)
        # A negated copy gives -0 instead of 0, and NaN with the other sign.
        return torch.where(fine | algebra.equal(first, second), first, second)


class Vote(nn.Module):
    """Triple modular redundancy (TMR): the elementwise median of three computations."""

    def forward(self, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
        """Return the median logits."""
        return algebra.median_of_three(first, second, third)
