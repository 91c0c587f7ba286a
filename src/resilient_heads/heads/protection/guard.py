"""The computation of a protected head; each of its tensors is a module's output, so that a fault can be put there."""

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor, nn

from resilient_heads.heads.protection import algebra
from resilient_heads.heads.protection.options import Protection
from resilient_heads.heads.protection.parts import Bounded, BoundedNorm, Check, Choice, Vote

SMALLEST_NORM = 2.0**-14
"""By which shorter latent vectors are divided: the smallest normal float16, so that it is above 0 in every format."""


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix product of a head.

    Attributes:
        name: What its result is called.
        layer: Linear or 1x1 Conv2d that holds weight and bias.
        runs: Whether the first computation runs the layer as a module; else its result gets a module of its own.
    """

    name: str
    layer: nn.Linear | nn.Conv2d
    runs: bool = True

    def times(self, x: Tensor, *, negate_weight: bool, negate_bias: bool) -> Tensor:
        """Return the product, with its weight or its bias negated."""
        weight, bias = self.layer.weight, self.layer.bias
        weight = -weight if negate_weight else weight
        bias = -bias if negate_bias and bias is not None else bias
        if isinstance(self.layer, nn.Conv2d):
            return nn.functional.conv2d(x, weight, bias)
        return nn.functional.linear(x, weight, bias)

    def parameters(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Return weight ``(O, K)`` and bias, as the product sees them when it gives ``dtype``."""
        weight, bias = self.layer.weight.flatten(1).to(dtype), self.layer.bias
        return weight, None if bias is None else bias.to(dtype)


@dataclass(frozen=True, slots=True)
class HeadGraph:
    """What a head computes.

    Attributes:
        products: One or two matrix products.
        scale: The learned log scale of a cosine head, or None for a linear one.
        scores: In a fused cosine head, how many of the first product's outputs are scores; the others give the norm.
    """

    products: tuple[Product, ...]
    scale: Tensor | None = None
    scores: int | None = None


class Copy(Enum):
    """What a computation negates, so that no compiler finds two to be the same one and drops it.

    Negation is exact for every value of every format: each step gives the values of the first computation with the
    other sign, which is undone at the end. The scale must stay positive, so its logarithm is multiplied and divided
    again by the number given here, which changes nothing but what overflows anyway.
    """

    FIRST = 1
    NEGATED_INPUT = -1
    NEGATED_WEIGHT = 2


_CHECKED_SCALE = 4
"""The same factor for the scale that checks compare with."""


class Computation(nn.Module):
    """One computation of a head.

    Args:
        plan: What the head computes.
        copy: What it negates.
        bounds: Hold every value against its bound.
        checks: Hold every sum against what it has to be.
    """

    def __init__(self, plan: HeadGraph, copy: Copy, *, bounds: bool, checks: bool) -> None:
        super().__init__()
        self.copy = copy
        negated = copy is not Copy.FIRST
        self.bounds, self.checks = bounds, checks
        names = ["input"] if copy is Copy.NEGATED_INPUT else []
        for product in plan.products:
            names += [product.name] if negated or not product.runs else []
            names += [f"{product.name}_reach"] if bounds or checks else []
            if bounds:
                names.append(f"{product.name}_limit")
                self.add_module(f"{product.name}_bounded", Bounded())
            if checks and (plan.scale is None or product is plan.products[0]):
                self.add_module(f"{product.name}_check", Check())
        if plan.scale is not None:
            ratio = "unit" if plan.scores is None else "cosine"
            names += ["norm", ratio, "scale"]
            if bounds:
                names += ["norm_limit", f"{ratio}_limit"]
                self.norm_bounded = BoundedNorm()
                self.add_module(f"{ratio}_bounded", Bounded())
            if checks:
                self.norm_check = Check()
                if plan.scores is None:
                    self.unit_check = Check()
                names.append("scale_again")
                self.scale_check = Check()
                self.logits_check = Check()
        if negated or plan.scale is not None:
            names.append("logits")
        if checks:
            names.append("excess")
        for name in names:
            self.add_module(name, nn.Identity())

    def run(self, plan: HeadGraph, x: Tensor, dim: int) -> tuple[Tensor, Tensor | None]:
        """Return the logits and, with checks, by how much each exceeds its tolerance, side by side along ``dim``."""
        if self.copy is Copy.NEGATED_INPUT:
            x = self._tap("input", -x)
        excess: list[Tensor] = []
        if plan.scale is not None:
            logits = self._cosine(plan, plan.scale, x, dim, excess)
        else:
            for product in plan.products:
                x = self._product(plan, product, x, dim, excess)[0]
            logits = x if self.copy is Copy.FIRST else self._tap("logits", -x)
        return logits, self._tap("excess", torch.cat(excess, dim=dim)) if excess else None

    def _product(
        self, plan: HeadGraph, product: Product, x: Tensor, dim: int, excess: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return a product, the norm of its input and its limit; of the last two, one that nothing needs is no such."""
        name = product.name
        if hasattr(self, name):
            of_weight = self.copy is Copy.NEGATED_WEIGHT and product is plan.products[0]
            y = product.times(x, negate_weight=of_weight, negate_bias=self.copy is not Copy.FIRST)
            y = self._tap(name, y)
        else:
            y = product.layer(x)
        if not (self.bounds or self.checks):
            return y, y, y
        x = x.to(y.dtype)
        weight, bias = product.parameters(y.dtype)
        reach = self._tap(f"{name}_reach", algebra.norm_of(x, dim))
        limit = y
        if self.bounds:
            limit = self._tap(f"{name}_limit", algebra.product_limit(reach, weight, bias, y, dim))
            y = self._tap(f"{name}_bounded", y, limit)
        if hasattr(self, f"{name}_check"):
            expected = algebra.expected_total(x, weight, bias, dim)
            tolerance = algebra.product_tolerance(reach, weight, bias, y, dim)
            excess.append(self._tap(f"{name}_check", expected, algebra.total(y, dim), tolerance))
        return y, reach, limit

    def _cosine(self, plan: HeadGraph, log_scale: Tensor, x: Tensor, dim: int, excess: list[Tensor]) -> Tensor:
        """Return the logits of a cosine head."""
        first, fused = plan.products[0], plan.scores is not None
        y, reach, limit = self._product(plan, first, x, dim, excess)
        vector = y
        if plan.scores is not None:
            sizes = [plan.scores, y.shape[dim] - plan.scores]
            y, vector = torch.split_with_sizes(y, sizes, dim)
            limit = torch.split_with_sizes(limit, sizes, dim)[0]
        norm = self._tap("norm", norm_by(vector, dim, fused=fused, smallest=SMALLEST_NORM))
        norm_limit = norm
        if self.bounds:
            weight, bias = first.parameters(vector.dtype)
            norm_limit = self._tap("norm_limit", algebra.norm_limit(reach, weight, bias, vector, SMALLEST_NORM))
            norm = self._tap("norm_bounded", norm, norm_limit, SMALLEST_NORM)
        if self.checks:
            again = algebra.norm_of(vector, dim).clamp_min(SMALLEST_NORM)
            tolerance = algebra.norm_tolerance(norm, vector.shape[dim])
            excess.append(self._tap("norm_check", again, algebra.total(norm, dim), tolerance))
        expected, tolerance = norm, norm
        if fused:
            cosine = self._tap("cosine", y / norm)
            if self.bounds:
                cosine = self._tap(
                    "cosine_bounded", cosine, self._tap("cosine_limit", algebra.ratio_limit(limit, norm))
                )
            if self.checks:
                expected = algebra.total(y, dim) / norm
                tolerance = algebra.rounding_tolerance(cosine, dim)
        else:
            unit = self._tap("unit", y / norm)
            if self.bounds:
                unit = self._tap(
                    "unit_bounded", unit, self._tap("unit_limit", algebra.unit_limit(norm_limit, unit, y.shape[dim]))
                )
            if self.checks:
                expected = algebra.total(y, dim) / norm
                tolerance = algebra.rounding_tolerance(unit, dim)
                excess.append(self._tap("unit_check", expected, algebra.total(unit, dim), tolerance))
            last = plan.products[1]
            cosine, reach, _ = self._product(plan, last, unit, dim, excess)
            if self.checks:
                weight, bias = last.parameters(cosine.dtype)
                expected = algebra.expected_total(unit.to(cosine.dtype), weight, bias, dim)
                tolerance = algebra.product_tolerance(reach, weight, bias, cosine, dim)
        scale = _scale(log_scale, self.copy.value, cosine.dtype, norm)
        scale = self._tap("scale", scale if self.copy is Copy.FIRST else -scale)
        logits = self._tap("logits", cosine * scale)
        if self.checks:
            again = self._tap("scale_again", _scale(log_scale, _CHECKED_SCALE, cosine.dtype, norm))
            both = algebra.total(again, dim), algebra.total(scale, dim)
            excess.append(self._tap("scale_check", *both, both[0] * 0))
            tolerance = tolerance * again + algebra.rounding_tolerance(logits, dim)
            excess.append(self._tap("logits_check", expected * again, algebra.total(logits, dim), tolerance))
        return logits

    def _tap(self, name: str, *values: Tensor | float) -> Tensor:
        """Return the output of the module of that name."""
        output: Tensor = getattr(self, name)(*values)
        return output


class Guard(nn.Module):
    """A protected computation. Its state is none: it holds no tensor, only modules whose outputs can be struck.

    Args:
        plan: What the head computes.
        protection: What is done against faults.
    """

    def __init__(self, plan: HeadGraph, protection: Protection) -> None:
        super().__init__()
        self.protection = protection
        bounds, again = protection.bounds, protection.checksum or protection.median
        self.first = Computation(plan, Copy.FIRST, bounds=bounds, checks=protection.checksum)
        self.second = Computation(plan, Copy.NEGATED_INPUT, bounds=bounds, checks=False) if again else None
        self.third = Computation(plan, Copy.NEGATED_WEIGHT, bounds=bounds, checks=False) if protection.median else None
        self.choice = Choice() if protection.checksum else None
        self.vote = Vote() if protection.median else None

    def run(self, plan: HeadGraph, x: Tensor, dim: int) -> Tensor:
        """Return the logits."""
        logits, excess = self.first.run(plan, x, dim)
        if self.second is not None:
            again, _ = self.second.run(plan, x, dim)
            if self.choice is not None:
                logits = self.choice(logits, again, excess, dim)
            if self.third is not None and self.vote is not None:
                logits = self.vote(logits, again, self.third.run(plan, x, dim)[0])
        return logits

    def sites(self) -> tuple[str, ...]:
        """Return the names of the modules whose outputs are the tensors of the computation, but for the last."""
        return tuple(
            name
            for name, module in self.named_modules()
            if name and not isinstance(module, Computation | Vote | Choice)
        )


def norm_by(vector: Tensor, dim: int, *, fused: bool, smallest: float) -> Tensor:
    """Return the norm as the unprotected head computes it, at least ``smallest``."""
    norm: Tensor = torch.linalg.vector_norm(vector, dim=dim, keepdim=True) if fused else vector.norm(2.0, dim, True)
    return norm.clamp_min(smallest)


def _scale(log_scale: Tensor, factor: int, dtype: torch.dtype, like: Tensor) -> Tensor:
    """Return a cosine head's scale, once for each sample, so that a fault in it is one sample's."""
    log_scale = log_scale if factor == 1 else log_scale * factor / factor
    return torch.ones_like(like, dtype=dtype) * log_scale.exp().to(dtype)
