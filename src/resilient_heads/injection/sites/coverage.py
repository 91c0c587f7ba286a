"""How much of a model's computation its fault sites hold."""

from dataclasses import dataclass
from typing import Any, Self

from resilient_heads.display import cut, wrapped

ENOUGH = 0.99
"""Share of the multiply-accumulates from which on figures of the network need no reservation."""

_SHOWN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Uncovered:
    """One operator, in the modules of one class, whose results no fault reaches.

    Attributes:
        operator: Name of the operator, such as ``"aten::bmm"``.
        module: Name of the first module that runs it; ``""`` is the model itself.
        modules: Number of modules that run it.
        kind: Class of the modules, or ``"TorchScript"``.
        macs: Their part of the model's multiply-accumulates, from 0 to 1; None if PyTorch cannot count them.
        bits: Their part of the model's activation bits, from 0 to 1.
    """

    operator: str
    module: str
    modules: int
    kind: str
    macs: float | None
    bits: float

    def __str__(self) -> str:
        where = repr(self.module) if self.module else "the model itself"
        where += f" and {self.modules - 1} more" if self.modules > 1 else ""
        amount = (
            f"{percent(self.macs)} of multiply-accumulates" if self.macs else f"{percent(self.bits)} of activation bits"
        )
        if self.macs is None:
            amount = "an unknown number of multiply-accumulates"
        return f"{self.operator.removeprefix('aten::')} in {where} ({self.kind}, {amount})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """How much of the computation of one forward pass lies in tensors that are fault sites.

    An operator is covered if a site holds its result, also after values were moved, a constant bias was added or a
    constant scale was applied. Operators that compute sums and hide them, such as fused attention, are never covered.

    Attributes:
        macs: Part of the multiply-accumulates whose operator is covered, from 0 to 1. Operators that PyTorch's counter
            does not know are left out if they are covered; otherwise this is None.
        bits: Part of the bits of all computed activations whose operator is covered; None if they cannot be counted.
        uncovered: What is not covered, each with ``operator``, ``module``, ``modules``, ``kind``, ``macs``, ``bits``:
            first the operators with most multiply-accumulates, then those with most activation bits, at most ten of
            each.
        reason: Why something could not be counted; empty if everything was.

    .. code-block:: python

        coverage = rh.find_sites(model, images).coverage
        coverage.macs, coverage.bits, [str(one) for one in coverage.uncovered]
    """

    macs: float | None
    bits: float | None
    uncovered: tuple[Uncovered, ...] = ()
    reason: str = ""

    @property
    def is_partial(self) -> bool:
        """Whether less than 99 % of the multiply-accumulates are known to be covered."""
        return self.macs is None or self.macs < ENOUGH

    @property
    def part(self) -> str:
        """The words that belong behind a figure of the network; empty if the sites cover 99 % or more."""
        if not self.is_partial:
            return ""
        size = "an unknown share" if self.macs is None else percent(self.macs)
        return f"of the covered part: {size} of multiply-accumulates"

    def __repr__(self) -> str:
        return wrapped(cut(f"<Coverage: {self}>", 190))

    def __str__(self) -> str:
        fractions = ((self.macs, "multiply-accumulates"), (self.bits, "activation bits"))
        parts = [
            f"{what} not counted" if fraction is None else f"{percent(fraction)} of {what}"
            for fraction, what in fractions
        ]
        text = ", ".join(parts) + (f" ({self.reason})" if self.reason else "")
        named = [one for one in self.uncovered if one.macs != 0]
        listed = "; ".join(map(str, named[:_SHOWN])) + (f"; {len(named) - _SHOWN} more" if len(named) > _SHOWN else "")
        return text + (f"; not covered: {listed}" if listed else "")

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        names = Uncovered.__dataclass_fields__
        uncovered = [{name: getattr(one, name) for name in names} for one in self.uncovered]
        return {"macs": self.macs, "bits": self.bits, "uncovered": uncovered, "reason": self.reason}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """Undo :meth:`as_dict`; raise TypeError or KeyError for other content."""
        return cls(**{**content, "uncovered": tuple(Uncovered(**one) for one in content["uncovered"])})


def percent(fraction: float) -> str:
    """Return a fraction as text that says 100 % and 0 % only where that is exact.

    >>> percent(0.99996), percent(1.0), percent(0.031), percent(1e-6)
    ('99.99 %', '100 %', '3.1 %', '0.0001 %')
    """
    if fraction in (0, 1):
        return f"{fraction:.0%}".replace("%", " %")
    text = f"{100 * fraction:.3g}" if fraction < 0.1 else f"{int(10000 * fraction) / 100:.4g}"
    return f"{text} %"
