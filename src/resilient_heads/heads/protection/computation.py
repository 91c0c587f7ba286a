"""One computation of a protected head. Each tensor is the output of a module, so that faults can be injected there."""

from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor, nn

from resilient_heads.heads.protection import algebra
from resilient_heads.heads.protection.algebra import SMALLEST_NORM
from resilient_heads.heads.protection.graph import HeadGraph, Product
from resilient_heads.heads.protection.parts import Bounded, BoundedNorm, Check


class Copy(Enum):
    """What a computation negates, so that no compiler merges it with another one.

    Negation is exact in every format: each tensor has the values of the first computation with the opposite sign, and
    the last step restores the sign. The scale must stay positive. Its logarithm is multiplied and divided by the number
    given here instead, which changes no value that does not overflow anyway.
    """

    FIRST = 1
    NEGATED_INPUT = -1
    NEGATED_WEIGHT = 2


_CHECKED_SCALE = 4
"""The same factor for the scale that the checks recompute."""


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass of a computation.

    Attributes:
        graph: What the head computes.
        excess: By how much each checksum exceeds its tolerance; filled as the pass proceeds.
    """

    graph: HeadGraph
    excess: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Checksum:
    """ABFT checksum of a tensor: what its values must sum to, and the difference that rounding may cause."""

    expected: Tensor
    tolerance: Tensor


@dataclass(frozen=True, slots=True)
class Step:
    """A tensor of the head after range restriction, with what later steps need of it.

    Attributes:
        values: The tensor.
        input_norm: Norm of the product's input; None without protection.
        limit: Largest magnitude of a fault-free value; None without bounds.
        checksum: None without checks.
    """

    values: Tensor
    input_norm: Tensor | None = None
    limit: Tensor | None = None
    checksum: Checksum | None = None


class Computation(nn.Module):
    """Compute a head once.

    The modules of a tensor ``t`` are fault sites: ``t`` returns the tensor as computed, ``t_limit`` its range,
    ``t_bounded`` the tensor after range restriction and ``t_check`` the excess of its ABFT checksum.

    Args:
        graph: What the head computes.
        copy: What this computation negates.
        bounds: Restrict every tensor to the range of its fault-free values.
        checks: Compare the sum of every tensor with the expected sum (ABFT checksum).
    """

    def __init__(self, graph: HeadGraph, copy: Copy, *, bounds: bool, checks: bool) -> None:
        super().__init__()
        self.copy, self.bounds, self.checks = copy, bounds, checks
        if copy is Copy.NEGATED_INPUT:
            self._add("input")
        for product in graph.products:
            if not self._runs_layer(product):
                self._add(product.name)
            if bounds or checks:
                self._add(f"{product.name}_reach")
            # The checksum of a cosine head's last product is compared after the scale, as that of the logits.
            self._add_guards(product.name, checked=graph.log_scale is None or product is graph.products[0])
        if graph.log_scale is not None:
            self._add("norm")
            self._add_guards("norm", BoundedNorm())
            ratio = "unit" if graph.scores is None else "cosine"
            self._add(ratio)
            self._add_guards(ratio, checked=graph.scores is None)
            self._add("scale", "logits")
            if checks:
                self._add("scale_again")
                self.scale_check, self.logits_check = Check(), Check()
        elif copy is not Copy.FIRST:
            self._add("logits")
        if checks:
            self._add("excess")

    def run(self, graph: HeadGraph, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the logits and, with checks, each checksum's excess over its tolerance, side by side."""
        if self.copy is Copy.NEGATED_INPUT:
            x = self._emit("input", -x)
        current = Pass(graph)
        if graph.log_scale is None:
            logits = self._linear(current, x)
        else:
            step, norm = self._cosine(current, x) if graph.scores is None else self._fused_cosine(current, x)
            logits = self._scaled(current, step, graph.log_scale, norm)
        return logits, self._emit("excess", torch.cat(current.excess, dim=graph.dim)) if current.excess else None

    def _linear(self, current: Pass, x: Tensor) -> Tensor:
        """Return the logits of a linear head."""
        for product in current.graph.products:
            step = self._product(current, product, x)
            self._check(current, product.name, step.values, step.checksum)
            x = step.values
        return x if self.copy is Copy.FIRST else self._emit("logits", -x)

    def _cosine(self, current: Pass, x: Tensor) -> tuple[Step, Tensor]:
        """Return the cosines of a head of two products, and the norm of its latent vector."""
        (first, last), dim = current.graph.products, current.graph.dim
        latent = self._product(current, first, x)
        self._check(current, first.name, latent.values, latent.checksum)
        norm, norm_limit = self._norm(current, latent, latent.values.norm(2.0, dim, True))
        unit = self._emit("unit", latent.values / norm)
        if norm_limit is not None:
            unit, _ = self._restrict("unit", unit, algebra.unit_limit(norm_limit, unit, latent.values.shape[dim]))
        self._check(current, "unit", unit, self._ratio_checksum(latent.values, norm, unit, dim))
        return self._product(current, last, unit), norm

    def _fused_cosine(self, current: Pass, x: Tensor) -> tuple[Step, Tensor]:
        """Return the cosines of a head of one product, and the norm of its latent vector."""
        (product,), dim, scores = current.graph.products, current.graph.dim, current.graph.scores
        assert scores is not None
        both = self._product(current, product, x)
        self._check(current, product.name, both.values, both.checksum)
        sizes = [scores, both.values.shape[dim] - scores]
        numerator, factor = torch.split_with_sizes(both.values, sizes, dim)
        vector = Step(factor, both.input_norm, both.limit)
        norm, _ = self._norm(current, vector, torch.linalg.vector_norm(factor, dim=dim, keepdim=True))
        cosine = self._emit("cosine", numerator / norm)
        if both.limit is not None:
            limit = torch.split_with_sizes(both.limit, sizes, dim)[0]
            cosine, _ = self._restrict("cosine", cosine, algebra.ratio_limit(limit, norm))
        return Step(cosine, checksum=self._ratio_checksum(numerator, norm, cosine, dim)), norm

    def _product(self, current: Pass, product: Product, x: Tensor) -> Step:
        """Return a matrix product."""
        if self._runs_layer(product):
            y: Tensor = product.layer(x)
        else:
            negate_weight = self.copy is Copy.NEGATED_WEIGHT and product is current.graph.products[0]
            y = product.times(x, negate_weight=negate_weight, negate_bias=self.copy is not Copy.FIRST)
            y = self._emit(product.name, y)
        if not (self.bounds or self.checks):
            return Step(y)
        x, dim, (weight, bias) = x.to(y.dtype), current.graph.dim, product.parameters(y.dtype)
        input_norm = self._emit(f"{product.name}_reach", algebra.norm_of(x, dim))
        limit = checksum = None
        if self.bounds:
            y, limit = self._restrict(product.name, y, algebra.product_limit(input_norm, weight, bias, y, dim))
        if self.checks:
            expected = algebra.expected_total(x, weight, bias, dim)
            checksum = Checksum(expected, algebra.product_tolerance(input_norm, weight, bias, y, dim))
        return Step(y, input_norm, limit, checksum)

    def _norm(self, current: Pass, vector: Step, norm: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the norm of the latent vector, at least ``SMALLEST_NORM``, and its limit."""
        values, dim, limit = vector.values, current.graph.dim, None
        norm = self._emit("norm", norm.clamp_min(SMALLEST_NORM))
        if vector.limit is not None and vector.input_norm is not None:
            weight, bias = current.graph.products[0].parameters(values.dtype)
            limit = algebra.norm_limit(vector.input_norm, weight, bias, values)
            norm, limit = self._restrict("norm", norm, limit)
        if self.checks:
            again = algebra.norm_of(values, dim).clamp_min(SMALLEST_NORM)
            tolerance = algebra.norm_tolerance(norm, values.shape[dim])
            self._check(current, "norm", norm, Checksum(again, tolerance))
        return norm, limit

    def _scaled(self, current: Pass, cosine: Step, log_scale: Tensor, norm: Tensor) -> Tensor:
        """Return the logits of a cosine head: the cosines times the learned scale."""
        dtype, dim = cosine.values.dtype, current.graph.dim
        scale = _scale(log_scale, self.copy.value, dtype, norm)
        scale = self._emit("scale", scale if self.copy is Copy.FIRST else -scale)
        logits = self._emit("logits", cosine.values * scale)
        if cosine.checksum is not None:
            again = self._emit("scale_again", _scale(log_scale, _CHECKED_SCALE, dtype, norm))
            total = algebra.total(again, dim)
            self._check(current, "scale", scale, Checksum(total, total * 0))
            tolerance = cosine.checksum.tolerance * again + algebra.rounding_tolerance(logits, dim)
            self._check(current, "logits", logits, Checksum(cosine.checksum.expected * again, tolerance))
        return logits

    def _ratio_checksum(self, numerator: Tensor, norm: Tensor, ratio: Tensor, dim: int) -> Checksum | None:
        """Return what values divided by a norm must sum to."""
        if not self.checks:
            return None
        return Checksum(algebra.total(numerator, dim) / norm, algebra.rounding_tolerance(ratio, dim))

    def _check(self, current: Pass, name: str, values: Tensor, checksum: Checksum | None) -> None:
        """Compare a tensor's sum with its ABFT checksum."""
        if checksum is not None:
            total = algebra.total(values, current.graph.dim)
            current.excess.append(self._emit(f"{name}_check", checksum.expected, total, checksum.tolerance))

    def _restrict(self, name: str, values: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
        """Return a tensor after range restriction, and its limit."""
        limit = self._emit(f"{name}_limit", limit)
        return self._emit(f"{name}_bounded", values, limit), limit

    def _emit(self, name: str, *values: Tensor) -> Tensor:
        """Return the output of the module of that name, where faults can be injected."""
        output: Tensor = self.get_submodule(name)(*values)
        return output

    def _runs_layer(self, product: Product) -> bool:
        """Whether this computation runs the product's layer; the layer's output is then the fault site."""
        return self.copy is Copy.FIRST and product.runs

    def _add(self, *names: str) -> None:
        """Register fault sites that return what they are given."""
        for name in names:
            self.add_module(name, nn.Identity())

    def _add_guards(self, name: str, restriction: nn.Module | None = None, *, checked: bool = True) -> None:
        """Register the range restriction and the ABFT checksum of a tensor, where they are chosen."""
        if self.bounds:
            self._add(f"{name}_limit")
            self.add_module(f"{name}_bounded", restriction or Bounded())
        if self.checks and checked:
            self.add_module(f"{name}_check", Check())


def _scale(log_scale: Tensor, factor: int, dtype: torch.dtype, like: Tensor) -> Tensor:
    """Return a cosine head's scale once per row of the batch, so that a fault in it affects one row."""
    log_scale = log_scale if factor == 1 else log_scale * factor / factor
    return torch.ones_like(like, dtype=dtype) * log_scale.exp().to(dtype)
