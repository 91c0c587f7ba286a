"""Do 99 % intervals of campaigns by change hold the truth, in a made-up world where all of it is known?"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import resilient_heads as rh
from helpers.survey import repeated
from resilient_heads.campaign.design.allocation import allocate, layer_weights
from resilient_heads.campaign.design.fault_space import SINGLE_FLIP
from resilient_heads.campaign.design.perturbation_strata import CLASSES
from resilient_heads.campaign.design.plan import stratum_order
from resilient_heads.campaign.figures.summary import weigh_trials
from resilient_heads.campaign.trials.columns import COLUMNS, CampaignSite, Trials
from resilient_heads.injection.sites.site import Site
from resilient_heads.statistics.intervals import Estimate
from resilient_heads.statistics.sample import Sample, influence
from resilient_heads.statistics.weighted import weighted_rate

Floats = NDArray[np.float64]
LAYERS, IMAGES = 5, 200
# As measured on a ResNet: most flips small and harmless, few thrown upwards and mostly harmful.
SHARES = np.array([0.763, 0.07, 0.021, 0.008, 0.002, 0.002, 0.016, 0.052, 0.013, 0.006, 0.003, 0.006, 0.031, 0.007])
RATES = np.array([0.0, 0.0, 0.006, 0.012, 0.03, 0.13, 0.8, 0.0, 0.006, 0.03, 0.02, 0.002, 0.01, 0.0])
SITES = tuple(
    CampaignSite(
        Site(module=f"{i}", kind="Conv2d", shape=(4, 8), dtype=torch.float32, group=None, is_layer=True), None, False
    )
    for i in range(LAYERS)
)


@dataclass(frozen=True)
class World:
    """How images and classes behave.

    Attributes:
        trials: Of a campaign.
        vary: Coefficient of variation of a class's share among images.
        fragile: Whether images with much of a class also fail more often in it.
        scale: Of all rates.
        image_weight: How often the twentieth of the images with most harm is drawn, the others being drawn once.
        pilot: Neurons that the pilot met in each layer: the fewer, the worse the shares that trials are shared out by.
        hidden: Rate that small changes have and the pilot did not see.
    """

    trials: int = 2000
    vary: float = 0.3
    fragile: bool = False
    scale: float = 1.0
    image_weights: int = 1
    pilot: int = 100
    hidden: float = 0.0


WORLDS = {
    "as measured": World(),
    "few trials": World(trials=500),
    "shares that vary": World(vary=1.0),
    "shares that vary with the rates": World(vary=1.0, fragile=True),
    "rare events": World(scale=0.05),
    "rare events on some images": World(scale=0.1, vary=1.5, fragile=True),
    "images drawn more often": World(vary=1.0, fragile=True, image_weights=8),
    "a small pilot": World(pilot=15, vary=0.5),
    "harm where the pilot saw none": World(hidden=0.002, scale=0.2),
}


def campaign(world: World, rng: np.random.Generator) -> tuple[float, Sample, NDArray[np.bool_]]:
    """Make a world, run a campaign in it, and return the truth, the trials' weights and their events."""
    factor = rng.gamma(1 / world.vary**2, world.vary**2, size=(LAYERS, IMAGES, CLASSES))
    share = SHARES * factor
    share /= share.sum(axis=2, keepdims=True)
    rates = RATES * world.scale * rng.uniform(0.5, 1.2, (LAYERS, 1, 1))
    rates[..., :2] += world.hidden
    rate = np.clip(rates * (factor if world.fragile else np.ones_like(factor)), 0, 1)
    truth = float((share * rate).sum(axis=2).mean())
    met = np.stack([rng.multinomial(world.pilot, own) for own in share.mean(axis=1)]) + 2 * SHARES + 0.5 / CLASSES
    weights = met / met.sum(axis=1, keepdims=True) / LAYERS
    useful = weights * np.sqrt(RATES * (1 - RATES) + 0.002)
    amounts = np.maximum(useful / useful.sum(), 0.5 * weights)
    names = [struck.site.name for struck in SITES]
    counts = allocate(world.trials, list(amounts / amounts.sum()), names)
    design = rh.StratifiedDesign(
        total_trials=world.trials,
        by=("perturbation",),
        counts=counts,
        scales=dict.fromkeys(names, 1.0),
        weighting="layer_averaged",
    )
    longest = max(sum(own) for own in counts.values())
    harm = (share * rate).sum(axis=2).mean(axis=0)
    image_weights = np.where(harm >= np.quantile(harm, 0.95), world.image_weights, 1)
    images = rng.choice(
        IMAGES, longest, p=image_weights / image_weights.sum()
    )  # trial i strikes one image in all layers
    parts = []
    for row, name in enumerate(names):
        own = sum(counts[name])
        codes = stratum_order(design, name)
        image = images[:own]
        columns = {column: np.zeros(own, dtype=kind) for column, kind in COLUMNS.items()}
        columns |= {"site": np.full(own, row, dtype=np.int32), "trial": np.arange(own), "image": image}
        columns |= {
            "weight": share[row, image, codes] * image_weights.mean() / image_weights[image],
            "outcome": np.zeros(own, dtype=np.uint8),
        }
        columns["delta_loss"] = (rng.random(own) < rate[row, image, codes]).astype(np.float64)
        parts.append(Trials(**columns))  # type: ignore[arg-type]
    trials = Trials.gather(parts)
    return (
        truth,
        weigh_trials(SITES, trials, design, layer_weights(SITES, "layer_averaged", SINGLE_FLIP)),
        trials.delta_loss > 0,
    )


def coverage(
    world: World, repetitions: int, interval: Callable[[NDArray[np.bool_], Sample], Estimate], *, seed: int = 71
) -> float:
    rng = np.random.default_rng(seed)
    held = 0
    for _ in range(repetitions):
        truth, drawn, events = campaign(world, rng)
        held += truth in interval(events, drawn)
    return held / repetitions


@pytest.mark.slow
@pytest.mark.parametrize("name", WORLDS)
def test_intervals_by_simulation(name: str) -> None:
    assert coverage(WORLDS[name], repeated(1200), weighted_rate) >= 0.98


def test_the_simulation_catches_shares_that_are_forgotten() -> None:
    def careless(events: NDArray[np.bool_], drawn: Sample) -> Estimate:
        each = np.bincount(drawn.stratum, weights=drawn.weight) / np.bincount(drawn.stratum)
        even = Sample(
            weight=np.full(len(drawn), each.mean() / each.sum()),
            site=drawn.site,
            stratum=drawn.stratum,
            image=drawn.image,
            image_draw=drawn.image_draw,
        )
        return weighted_rate(events, even)

    assert coverage(WORLDS["as measured"], repeated(120), careless) < 0.5


def test_the_estimate_is_unbiased_in_a_world_of_few_trials() -> None:
    rng, errors = np.random.default_rng(73), []
    for _ in range(repeated(1800)):
        truth, drawn, events = campaign(World(trials=700, vary=1.0, fragile=True), rng)
        errors.append(influence(drawn, events.astype(float)).value / truth - 1)
    assert abs(np.mean(errors)) < 4 * np.std(errors) / np.sqrt(len(errors))
