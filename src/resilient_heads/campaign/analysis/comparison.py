"""What a comparison of two campaigns found."""

from dataclasses import dataclass

from resilient_heads.campaign.figures.summary import cell
from resilient_heads.campaign.result.summary import Summary
from resilient_heads.display import columns, cut, percent, wrapped
from resilient_heads.errors import ArgumentError
from resilient_heads.statistics.intervals import Estimate

METRICS = ("delta_loss", "sdc", "due")
COMPARED_RATES = ("sdc", "due")
HARMFUL_BITS = "harmful_bits"


@dataclass(frozen=True, slots=True, kw_only=True)
class Improvement:
    """One figure of a baseline and of a candidate.

    Attributes:
        scope: Name of a set of sites in :data:`~resilient_heads.campaign.figures.scopes.SCOPES`.
        weighting: ``"layer_averaged"`` (plain mean of the layers), ``"bit_weighted"`` (weighted by bits), or
            ``"harmful_bits"``: not a mean, but the number of bits whose fault causes the outcome. A ratio of harmful
            bits is a ratio of FIT rates too.
        metric: ``"delta_loss"``, ``"sdc"`` or ``"due"``.
        baseline: Figure of the baseline.
        candidate: Figure of the candidate.
        ratio: Baseline divided by candidate. Above 1, the candidate is better.
        difference: Baseline minus candidate. Above 0, the candidate is better.
        note: What to know before you quote the figure; empty if both campaigns have the same sites.
    """

    scope: str
    weighting: str
    metric: str
    baseline: Estimate
    candidate: Estimate
    ratio: Estimate
    difference: Estimate
    note: str = ""

    def __str__(self) -> str:
        figure = f"{self.metric} in {self.scope} ({self.weighting}): {self.baseline} to {self.candidate}"
        return wrapped(f"{figure}, ratio {self.ratio}{'. ' if self.note else ''}{self.note}")

    def __repr__(self) -> str:
        return wrapped(f"<Improvement {self.scope}, {self.metric}, {self.weighting}: ratio {self.ratio}>")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDifference:
    """One rate of one site in two campaigns.

    Attributes:
        layer: Name of the site.
        metric: ``"sdc"`` or ``"due"``.
        baseline: Rate of the baseline.
        candidate: Rate of the candidate.
        difference: Baseline minus candidate, without correction for the number of sites.
        p_value: Smallest tail probability at which the interval of the difference excludes 0.
        adjusted: The p-value with Holm's correction for the number of sites.
        differs: Whether ``adjusted`` is at most 1 minus the level of the comparison.
    """

    layer: str
    metric: str
    baseline: Estimate
    candidate: Estimate
    difference: Estimate
    p_value: float
    adjusted: float
    differs: bool

    def __str__(self) -> str:
        verdict = "differs" if self.differs else "no difference shown"
        rates = f"{self.metric} {self.baseline} to {self.candidate}"
        return wrapped(f"{cut(self.layer, 60)}: {rates}: {verdict} (adjusted p {self.adjusted:.2g})")

    def __repr__(self) -> str:
        return wrapped(f"<LayerDifference {self}>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A candidate against a baseline, under one protocol.

    Attributes:
        baseline: Summary of the baseline.
        candidate: Summary of the candidate.
        accuracy_gain: Accuracy of the candidate minus that of the baseline, from -1 to 1; paired by image.
        top2diff_gain: Mean Top2Diff of the candidate minus that of the baseline; paired by image.
        improvements: Every figure of every scope that both campaigns cover.
        layers: SDC and DUE rates of every site that both campaigns have, in the order of the baseline.
        notes: By what else the campaigns differ, a sentence each. Differences that change no figure are left out.
    """

    baseline: Summary
    candidate: Summary
    accuracy_gain: Estimate
    top2diff_gain: Estimate
    improvements: tuple[Improvement, ...]
    layers: tuple[LayerDifference, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        accuracy = f"accuracy {self.baseline.accuracy.value:.3g} to {self.candidate.accuracy.value:.3g}"
        head = f"{cut(self.baseline.protocol.name, 30)}, {accuracy}; above 1x the candidate is better"
        rows = [["scope", "figure", "baseline", "candidate", f"ratio [{percent(self.baseline.level)} interval]"]]
        for found in (self.improvement(scope, metric) for scope in self._scopes() for metric in METRICS):
            values = f"{found.baseline.value:.3g}", f"{found.candidate.value:.3g}", cell(found.ratio)
            rows.append([found.scope, f"{found.metric}, {found.weighting}", *values])
        return "\n".join([head, columns(rows), *(wrapped(cut(f"Note: {note}", 300)) for note in self.notes[:4])])

    def __repr__(self) -> str:
        return wrapped(f"<Comparison {self.baseline.protocol.name}: {', '.join(self._scopes())}>")

    def _scopes(self) -> list[str]:
        return list(dict.fromkeys(improvement.scope for improvement in self.improvements))

    def differing(self, metric: str = "sdc") -> tuple[LayerDifference, ...]:
        """Return the layers whose rates differ. With the confidence level, none of them is a false discovery.

        Raises:
            ArgumentError: ``metric`` is not a rate by which layers are compared.
        """
        if metric not in COMPARED_RATES:
            raise ArgumentError(f"Layers are compared by {' and '.join(COMPARED_RATES)}, found {metric!r}.")
        return tuple(found for found in self.layers if found.metric == metric and found.differs)

    def improvement(self, scope: str, metric: str, *, weighting: str | None = None) -> Improvement:
        """Return one of :attr:`improvements`.

        Args:
            scope: A name in :data:`~resilient_heads.campaign.figures.scopes.SCOPES`.
            metric: ``"delta_loss"``, ``"sdc"`` or ``"due"``.
            weighting: See :class:`Improvement`. None takes ``"layer_averaged"`` if both campaigns have the same sites
                in the scope. Otherwise a plain mean is over different sites, so None takes ``"harmful_bits"``, and for
                ``"delta_loss"``, or a fault that is not one bit, ``"bit_weighted"``.

        Raises:
            ArgumentError: There is none of that kind.
        """
        found = [i for i in self.improvements if (i.scope, i.metric) == (scope, metric)]
        order = [weighting] if weighting is not None else ["layer_averaged", HARMFUL_BITS, "bit_weighted"]
        if weighting is None and found and found[0].note:
            order.remove("layer_averaged")
        for kind in order:
            for improvement in found:
                if improvement.weighting == kind:
                    return improvement
        kinds = sorted({(i.scope, i.metric, i.weighting) for i in self.improvements})
        raise ArgumentError(f"No improvement is known for {(scope, metric, weighting)}; expected one of {kinds}.")
