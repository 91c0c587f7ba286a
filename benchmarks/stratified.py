"""Trials for the same 99 % interval of a network's SDC rate: stratified against uniform, both measured by running them.

``python benchmarks/stratified.py`` trains the demo's digits classifier and strikes it under both protocols. For each
it runs a uniform campaign, then a pilot, Neyman's allocation from it and the stratified campaign, with another seed;
the stratified one stops (``until=``) at the first look at which its interval is as narrow as the uniform one's. The
pilot is counted. ``--shared-data FOLDER`` takes the pretrained ResNet-20 and CIFAR-10 of the tests instead, if their
files are in that folder.
"""

import argparse
import importlib
import os
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import resilient_heads as rh
from resilient_heads.campaign.design import Weighting
from resilient_heads.campaign.results import CampaignResult
from resilient_heads.metrics.intervals import Estimate

Images = tuple[Tensor, Tensor]


def digits_model() -> tuple[nn.Module, Images, Tensor]:
    """Return a small trained classifier, its test images with labels, and training images."""
    from resilient_heads.demo import digits, train

    train_set, test_set = digits(seed=0)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    train(model, train_set, seed=0, epochs=15, device="cpu", label="digits")
    return model, (test_set.tensors[0], test_set.tensors[1]), train_set.tensors[0]


def resnet20(folder: Path, images: int) -> tuple[nn.Module, Images, Tensor]:
    """Return the pretrained ResNet-20, CIFAR-10 test images with labels, and training images."""
    os.environ["RESILIENT_HEADS_DATA"] = str(folder)
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    shared_data = importlib.import_module("shared_data")

    return (
        shared_data.pretrained_resnet20(),
        shared_data.cifar10(images),
        shared_data.cifar10(512, split="train25k_jpeg")[0],
    )


def network_sdc(result: CampaignResult, weighting: Weighting) -> Estimate:
    """Return the figure to compare."""
    scope = result.scope("network")
    return (scope.per_layer if weighting == "per_layer" else scope.exposed).sdc


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shared-data", type=Path, default=None, help="folder of ResNet-20 and CIFAR-10")
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--injections", type=int, default=8192, help="trials of the uniform campaign at each site")
    parser.add_argument("--pilot", type=int, default=256, help="trials of the pilot at each site")
    parser.add_argument("--floor", type=float, default=0.5)
    parser.add_argument("--weighting", choices=["per_layer", "exposed"], default="per_layer")
    parser.add_argument("--protocols", nargs="+", default=["raw", "goldeneye"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    options = parser.parse_args()
    if options.shared_data is None:
        model, data, calibration = digits_model()
    else:
        model, data, calibration = resnet20(options.shared_data, options.images)
    print(
        "| protocol | seed | design | trials | SDC rate | half-width | fewer trials |\n|---|---|---|---:|---|---:|---:|"
    )
    for protocol in options.protocols:
        for seed in options.seeds:
            compare_designs(model, data, calibration, protocol, seed, options)


def compare_designs(
    model: nn.Module, data: Images, calibration: Tensor, protocol: str, seed: int, options: argparse.Namespace
) -> None:
    """Run both designs and print a row each."""

    def run(
        seed: int, *, injections: int = 1, design: rh.Stratified | None = None, until: rh.Until | None = None
    ) -> CampaignResult:
        return rh.run_campaign(
            model,
            data,
            protocol=protocol,
            calibration=calibration,
            injections_per_layer=injections,
            design=design,
            until=until,
            seed=seed,
            batch_size=64,
            progress=False,
        )

    def row(label: str, trials: int, found: Estimate, factor: str) -> None:
        half = (found.high - found.low) / 2
        print(f"| {protocol} | {seed} | {label} | {trials:,} | {found} | {half:.3g} | {factor} |", flush=True)

    even = run(3 * seed, injections=options.injections)
    uniform = network_sdc(even, options.weighting)
    row("uniform", len(even.trials), uniform, "")
    pilot = run(3 * seed + 1, injections=options.pilot)
    design = rh.neyman(
        pilot, trials=len(even.trials) - len(pilot.trials), weighting=options.weighting, floor=options.floor
    )
    until = rh.Until(half_width=(uniform.high - uniform.low) / 2, weighting=options.weighting)
    early = run(3 * seed + 2, design=design, until=until)
    cost = len(early.trials) + len(pilot.trials)
    row("stratified, until as narrow", cost, network_sdc(early, options.weighting), f"{len(even.trials) / cost:.1f}x")
    full = network_sdc(run(3 * seed + 2, design=design), options.weighting)
    row("stratified, as many trials", len(even.trials), full, "")


if __name__ == "__main__":
    main()
