"""When a campaign has enough trials."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from resilient_heads.campaign.design.allocation import WEIGHTINGS, Weighting, layer_weights
from resilient_heads.campaign.design.designs import Design
from resilient_heads.campaign.figures.scopes import SCOPES
from resilient_heads.campaign.figures.summary import estimate
from resilient_heads.campaign.figures.weights import weigh_trials
from resilient_heads.campaign.trials.columns import CampaignSite, Trials
from resilient_heads.campaign.trials.rates import check_metric
from resilient_heads.checks import one_of, real_number, whole_number
from resilient_heads.display import as_code
from resilient_heads.errors import ArgumentError
from resilient_heads.injection.faults.fault_model import FaultModel
from resilient_heads.statistics.intervals import DEFAULT_LEVEL, Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class StoppingRule:
    """Stop a campaign as soon as the interval of one figure is narrow enough.

    The campaign checks the rule after every chunk.

    Attributes:
        half_width: Half of the interval's width at which the campaign stops; a fraction of the figure's value if
            ``relative`` is True.
        metric: ``"delta_loss"`` or the name of a rate.
        scope: The sites of the figure, a name in :data:`~resilient_heads.campaign.figures.scopes.SCOPES`.
        weighting: Mean over the sites: ``"layer_averaged"`` or ``"bit_weighted"``.
        level: Confidence level of the interval.
        relative: Whether ``half_width`` is a fraction of the figure's value.
        max_trials: Stop in any case after the first chunk with which the campaign has this many trials; None sets no
            maximum.

    Raises:
        ArgumentError: A choice is unknown or out of range.

    >>> StoppingRule(half_width=0.1, metric="sdc", relative=True).scope
    'network'
    """

    half_width: float
    metric: str = "sdc"
    scope: str = "network"
    weighting: Weighting = "layer_averaged"
    level: float = DEFAULT_LEVEL
    relative: bool = False
    max_trials: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "half_width", real_number("half_width", self.half_width, above=0, below=math.inf))
        check_metric(self.metric)
        one_of("scope", self.scope, tuple(SCOPES))
        one_of("weighting", self.weighting, WEIGHTINGS)
        object.__setattr__(self, "level", real_number("level", self.level, above=0, below=1))
        if self.max_trials is not None:
            whole_number("max_trials", self.max_trials, least=1)

    def __repr__(self) -> str:
        return as_code(self)

    def is_met(self, sites: Sequence[CampaignSite], trials: Trials, design: Design, fault: FaultModel) -> bool:
        """Whether the trials so far are enough. The answer depends on the trials alone.

        Raises:
            ArgumentError: The campaign has no site in the rule's scope.
        """
        if self.max_trials is not None and len(trials) >= self.max_trials:
            return True
        figure = self.estimate(sites, trials, design, fault)
        half_width = (figure.high - figure.low) / 2
        largest = self.half_width * abs(figure.value) if self.relative else self.half_width
        return bool(math.isfinite(half_width) and half_width <= largest)

    def estimate(self, sites: Sequence[CampaignSite], trials: Trials, design: Design, fault: FaultModel) -> Estimate:
        """Return the figure to which the rule refers.

        Raises:
            ArgumentError: The campaign has no site in the rule's scope.
        """
        scope = SCOPES[self.scope]
        rows = scope.rows(sites)
        if not rows:
            raise ArgumentError(
                f"The campaign injects into no site of the rule's scope {self.scope!r} ({scope.description}); pass "
                "another scope to StoppingRule, or other layers."
            )
        in_scope, chosen = trials.rows(rows), [sites[row] for row in rows]
        weighted = weigh_trials(chosen, in_scope, design, layer_weights(chosen, self.weighting, fault))
        return estimate(in_scope, weighted, self.metric, self.level)
