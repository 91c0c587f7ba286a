"""How often nominal 99 % intervals hold the truth: mean losses, early stopping, strata by perturbation.

``python benchmarks/coverage.py --seed 1001`` simulates each case many times. The losses of one image share its
fragility (gamma, variance 1/4). There are two strata, with fractions 0.3 and 0.7. A campaign that may stop early
looks at its interval after every ``step`` trials. Campaigns by perturbation run in the simulated worlds of the tests;
``--only-perturbation`` runs no other case.
"""

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resilient_heads.statistics import Estimate, Sample, weighted_mean, weighted_rate

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Floats]
LOSSES: dict[str, tuple[float, Draw]] = {
    "gamma, skewness 1.4": (1.0, lambda rng, n: rng.gamma(2.0, 0.5, n)),
    "exponential, skewness 2": (1.0, lambda rng, n: rng.exponential(1.0, n)),
    "log-normal, skewness 6": (float(np.exp(0.5)), lambda rng, n: rng.lognormal(0.0, 1.0, n)),
    "mostly zero": (0.1, lambda rng, n: rng.exponential(1.0, n) * (rng.random(n) < 0.1)),
}
FRACTIONS = np.array([0.3, 0.7])


def sample_of(counts: tuple[int, int], image: NDArray[np.int64]) -> Sample:
    """Return a sample of two strata with the given numbers of trials and images."""
    stratum = np.repeat([0, 1], counts)
    return Sample(
        weight=(FRACTIONS / np.array(counts))[stratum],
        site=np.zeros_like(stratum),
        stratum=stratum,
        image=image,
        image_draw=np.arange(len(stratum)),
    )


def losses(name: str, images: int, repetitions: int, rng: np.random.Generator) -> float:
    """Return the coverage of the mean loss with three trials on each image."""
    truth, draw = LOSSES[name]
    held = 0
    for _ in range(repetitions):
        image = rng.permutation(np.arange(3 * images) % images)
        values = draw(rng, len(image)) * rng.gamma(4.0, 0.25, images)[image]
        held += truth in weighted_mean(values, sample_of((2 * images, images), image))
    return held / repetitions


def stopped(
    truth: float,
    draw: Draw,
    interval: Callable[[Floats, Sample], Estimate],
    goal: float,
    relative: bool,
    step: int,
    repetitions: int,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """Return coverage and mean number of trials of campaigns that stop once their interval is narrow enough."""
    held, spent = 0, []
    for _ in range(repetitions):
        values: list[Floats] = []
        for look in range(1, 121):
            values.append(draw(rng, step))
            half = look * step // 2
            parts = np.concatenate([*(v[: step // 2] for v in values), *(v[step // 2 :] for v in values)])
            found = interval(parts, sample_of((half, half), np.arange(2 * half)))
            if (found.high - found.low) / 2 <= goal * (found.value if relative else 1.0):
                break
        held += truth in found
        spent.append(look * step)
    return held / repetitions, float(np.mean(spent))


def main() -> None:
    """Run all cases and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=1001)
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--only-perturbation", action="store_true")
    options = parser.parse_args()
    rng, many = np.random.default_rng(options.seed), options.repetitions
    print("| case | coverage |\n|---|---:|")
    tests = Path(__file__).parents[1] / "tests"
    sys.path[:0] = [str(tests), str(tests / "campaign")]
    simulated = importlib.import_module("test_changes_coverage")
    for name, world in simulated.WORLDS.items():
        covered = simulated.coverage(world, many, weighted_rate, seed=options.seed)
        print(f"| rate, strata by perturbation, {name} | {covered:.2%} |", flush=True)
    if options.only_perturbation:
        return
    for name in LOSSES:
        for images in (100, 400):
            print(f"| mean loss, {name}, {images} images | {losses(name, images, many, rng):.2%} |", flush=True)
    for rate, width in ((0.05, 0.3), (0.01, 0.5), (0.002, 0.8)):

        def events(rng: np.random.Generator, n: int, rate: float = rate) -> Floats:
            return (rng.random(n) < rate).astype(np.float64)

        def rate_of(values: Floats, drawn: Sample) -> Estimate:
            return weighted_rate(values > 0, drawn)

        found, spent = stopped(rate, events, rate_of, width, True, 128, many // 4, rng)
        print(f"| until rate {rate:.1%} within {width:.0%} of itself ({spent:,.0f} trials) | {found:.2%} |", flush=True)
    for name, (truth, draw) in list(LOSSES.items())[:3]:  # sparse losses take very long to get within a quarter
        found, spent = stopped(truth, draw, lambda v, s: weighted_mean(v, s), 0.25, True, 100, many // 8, rng)
        print(f"| until mean loss, {name}, within 25% ({spent:,.0f} trials) | {found:.2%} |", flush=True)


if __name__ == "__main__":
    main()
