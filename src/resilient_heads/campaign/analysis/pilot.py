"""From a pilot campaign to the design with the narrowest interval for the same number of trials."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from resilient_heads.campaign.analysis.stratum_needs import StratumNeeds, needs_by_bits, needs_by_perturbation
from resilient_heads.campaign.design.allocation import WEIGHTINGS, Weighting, allocate
from resilient_heads.campaign.design.designs import StratifiedDesign, ways_to_divide
from resilient_heads.campaign.design.fault_space import SINGLE_FLIP
from resilient_heads.campaign.design.strata import By
from resilient_heads.campaign.result.results import CampaignResult
from resilient_heads.campaign.trials.rates import check_metric
from resilient_heads.checks import instance_of, one_of, real_number
from resilient_heads.display import as_code
from resilient_heads.errors import ArgumentError, ResultError
from resilient_heads.injection.faults.fault_model import FaultModel

_DOUBT = 1.05
"""Factor on the expected width with strata of bits before it is compared with that of perturbations. The allowance for
unseen events is larger with many small strata, so the forecast for perturbations is the more pessimistic one."""
_FLOORS = np.linspace(0.1, 0.95, 35)


def neyman_design(
    pilot: CampaignResult,
    *,
    total_trials: int,
    metric: str = "sdc",
    weighting: Weighting = "layer_averaged",
    by: Sequence[By] | None = None,
    channel_groups: int = 4,
    image_groups: int = 1,
    floor: float | None = None,
) -> StratifiedDesign:
    """Allocate trials by Neyman's rule: in proportion to each stratum's weight times its standard deviation.

    The standard deviations are estimated from a pilot campaign, whose trials do not enter the estimate. So the estimate
    of the campaign is unbiased, however wrong the pilot is. Run the campaign with another seed than the pilot's. A
    pilot sees few events in a stratum; therefore its estimate is shrunk towards those of the same bits in all layers
    and of all bits in the same layer, and is never 0.

    Args:
        pilot: A campaign with the same model, layers and protocol.
        total_trials: Number of trials at all sites together, without the pilot's.
        metric: The figure that becomes precise: ``"delta_loss"`` or a rate.
        weighting: Mean over the layers in that figure: ``"layer_averaged"`` or ``"bit_weighted"``.
        by: See :class:`StratifiedDesign`. None chooses ``("perturbation",)`` or ``("magnitude",)``, whichever is
            expected to give the narrower interval; for another fault than a single flip it chooses ``()``, since such
            strata consist of single flips.
        channel_groups: Number of groups of channels, if ``by`` has ``"channel"``.
        image_groups: See :class:`StratifiedDesign`.
        floor: Every stratum gets at least this fraction of its proportional number of trials, in ``(0, 1]``. So no
            trial has a weight above ``1 / (floor * total_trials)``, and events are found where the pilot saw none. None
            chooses the floor with the narrowest expected interval.

    Raises:
        ArgumentError: A choice is unknown or out of range, or there are fewer than two trials for each stratum.
        ResultError: The metric had the same value in all trials of the pilot.

    Source: Neyman, *On the two different aspects of the representative method*, JRSS 1934; the floor after Hesterberg,
    *Weighted average importance sampling and defensive mixture distributions*, Technometrics 1995.

    >>> import torch, resilient_heads as rh
    >>> _ = torch.manual_seed(0)
    >>> model, images = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)), torch.randn(8, 3, 2, 2)
    >>> data = (images, model(images).argmax(dim=1))
    >>> pilot = rh.run_campaign(model, data, protocol="raw", trials_per_site=300, seed=1, progress=False)
    >>> design = rh.neyman_design(pilot, total_trials=2000, by=("magnitude",))
    >>> result = rh.run_campaign(model, data, protocol="raw", design=design, progress=False)
    >>> len(result.trials)
    2000
    """
    check_metric(metric)
    one_of("weighting", weighting, WEIGHTINGS)
    if floor is not None:
        real_number("floor", floor, above=0, most=1)
    instance_of("pilot", pilot, CampaignResult, example='rh.CampaignResult.load("pilot")')
    ways = _strata_for(pilot.config.fault, by)
    values = pilot.trials.values(metric)
    if len(np.unique(values[np.isfinite(values)])) < 2:
        raise ResultError(
            f"The pilot saw no variation of {metric!r}; run a pilot with more trials, or use a "
            "StratifiedDesign without counts."
        )
    shape = StratifiedDesign(
        total_trials=total_trials,
        by=("magnitude",) if ways is None or ways == ("perturbation",) else ways,
        weighting=weighting,
        channel_groups=channel_groups,
        image_groups=image_groups,
        pilot_seed=pilot.config.seed,
    )
    candidates = []
    if ways != ("perturbation",):
        candidates.append(needs_by_bits(pilot, shape, metric))
    if ways is None or ways == ("perturbation",):
        candidates.append(needs_by_perturbation(pilot, shape, metric))
    needs, floor = _narrowest(candidates, total_trials, [floor] if floor is not None else _FLOORS.tolist())
    counts = allocate(
        total_trials, needs.amounts_by_site(floor), [site.name for site in pilot.sites], least=needs.smallest
    )
    if needs.scales is None:
        return replace(shape, counts=counts)
    # Without a range detector most SDCs come from values so large that no margin of an image withstands them.
    fragile_images = pilot.config.protocol.range_detector is not None
    return replace(shape, by=("perturbation",), counts=counts, scales=needs.scales, fragile_images=fragile_images)


def _strata_for(fault: FaultModel, by: Sequence[By] | None) -> tuple[By, ...] | None:
    """Return what divides a site into strata: strata of bits and perturbations consist of single flips."""
    if fault == SINGLE_FLIP:
        return None if by is None else ways_to_divide(by)
    if by:
        raise ArgumentError(
            f"Strata by {' and '.join(by)} consist of single flips, and the trials of the pilot inject "
            f"{as_code(fault)}; leave out by=, so that each site is one stratum."
        )
    return ()


def _narrowest(
    candidates: Sequence[StratumNeeds], total_trials: int, floors: Sequence[float]
) -> tuple[StratumNeeds, float]:
    """Return the kind of strata and the floor with the narrowest expected interval, of those with enough trials."""
    fitting = [needs for needs in candidates if needs.smallest.sum() <= total_trials] or candidates[:1]
    return min(
        ((needs, floor) for needs in fitting for floor in floors),
        key=lambda choice: choice[0].width(choice[1]) * (_DOUBT if choice[0].scales is None else 1.0),
    )
