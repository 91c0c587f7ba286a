"""When a campaign has seen enough."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from resilient_heads.campaign.design.allocation import WEIGHTINGS, Weighting, layer_weights
from resilient_heads.campaign.design.designs import Design
from resilient_heads.campaign.figures.summary import SCOPES, estimate, scope_rows, weigh_trials
from resilient_heads.campaign.trials.columns import RATES, CampaignSite, Trials
from resilient_heads.errors import ArgumentError
from resilient_heads.statistics.intervals import DEFAULT_LEVEL, Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class StoppingRule:
    """Stop as soon as an interval of one figure is narrow enough.

    Attributes:
        half_width: Half of the interval's width at which to stop; as a share of the value if ``relative``.
        metric: ``"delta_loss"`` or a rate.
        scope: The sites; see :data:`~resilient_heads.campaign.figures.summary.SCOPES`.
        weighting: Of its layers: ``"layer_averaged"`` or ``"bit_weighted"``.
        level: Confidence level of the interval.
        relative: Whether ``half_width`` is a share of the value.
        max_trials: Stop at this many trials in any case, at the first look that finds them; None: at the design's end.

    The campaign looks after every chunk; more looks stop sooner and are a little luckier.

    Raises:
        ArgumentError: A choice that means nothing.
    """

    half_width: float
    metric: str = "sdc"
    scope: str = "network"
    weighting: Weighting = "layer_averaged"
    level: float = DEFAULT_LEVEL
    relative: bool = False
    max_trials: int | None = None

    def __post_init__(self) -> None:
        if not (self.half_width > 0 and math.isfinite(self.half_width)):
            raise ArgumentError(f"half_width is above 0, found {self.half_width}.")
        if self.metric != "delta_loss" and self.metric not in RATES:
            raise ArgumentError(f"No metric is named {self.metric!r}; expected delta_loss, {', '.join(RATES)}.")
        if self.scope not in SCOPES:
            raise ArgumentError(f"No scope is named {self.scope!r}; expected one of {', '.join(SCOPES)}.")
        if self.weighting not in WEIGHTINGS:
            raise ArgumentError(f"weighting must be one of {', '.join(WEIGHTINGS)}, found {self.weighting!r}.")
        if not 0 < self.level < 1:
            raise ArgumentError(f"level lies between 0 and 1, found {self.level}.")
        if self.max_trials is not None and self.max_trials < 1:
            raise ArgumentError(f"max_trials is at least 1, found {self.max_trials}.")


def reached(rule: StoppingRule, sites: Sequence[CampaignSite], trials: Trials, design: Design) -> bool:
    """Whether the trials so far are enough; a pure function of them.

    Raises:
        ArgumentError: The campaign strikes no site of the rule's scope.
    """
    if rule.max_trials is not None and len(trials) >= rule.max_trials:
        return True
    return narrow_enough(rule, current(rule, sites, trials, design))


def current(rule: StoppingRule, sites: Sequence[CampaignSite], trials: Trials, design: Design) -> Estimate:
    """Return the figure that a rule watches.

    Raises:
        ArgumentError: The campaign strikes no site of the rule's scope.
    """
    rows = scope_rows(sites, rule.scope)
    if not rows:
        raise ArgumentError(f"The campaign strikes no site of {rule.scope!r} ({SCOPES[rule.scope]}).")
    chosen = [sites[row] for row in rows]
    own = trials.rows(rows)
    return estimate(
        own, weigh_trials(chosen, own, design, layer_weights(chosen, rule.weighting)), rule.metric, rule.level
    )


def narrow_enough(rule: StoppingRule, found: Estimate) -> bool:
    """Whether an interval is as narrow as the rule asks; one without ends is not."""
    half = (found.high - found.low) / 2
    target = rule.half_width * abs(found.value) if rule.relative else rule.half_width
    return bool(math.isfinite(half) and half <= target)
