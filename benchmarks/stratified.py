"""How many trials a 99 % interval of a network's SDC rate takes: a stratified campaign against a uniform one.

``python benchmarks/stratified.py`` trains a small classifier of digits. For each protocol it runs a uniform campaign, a
pilot, and a stratified campaign that ``neyman_design`` allocates. The trials and the time of the pilot count.
``--shared-data FOLDER`` uses the pretrained ResNet-20 and the CIFAR-10 images of the tests instead, if their files are
in that folder.
"""

import argparse
import importlib
import os
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import resilient_heads as rh
from resilient_heads.campaign.design.allocation import Weighting
from resilient_heads.statistics.intervals import Estimate

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
    shared_data = importlib.import_module("helpers.shared_data")

    return (
        shared_data.pretrained_resnet20(),
        shared_data.cifar10(images),
        shared_data.cifar10(512, split="train25k_jpeg")[0],
    )


def network_sdc(result: rh.CampaignResult, weighting: Weighting) -> Estimate:
    """Return the figure to compare."""
    scope = result.scope("network")
    return (scope.layer_averaged if weighting == "layer_averaged" else scope.bit_weighted).sdc


def main() -> None:
    """Compare the designs for each protocol and seed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shared-data", type=Path, default=None, help="folder of ResNet-20 and CIFAR-10")
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--trials-per-site", type=int, default=4096, help="of the uniform campaign")
    parser.add_argument("--pilot", type=int, help="trials per site of the pilot (default: 128; digits: 512)")
    parser.add_argument(
        "--fraction",
        type=float,
        default=0.25,
        help="trials of pilot and stratified campaign together, as a fraction of those of the uniform campaign",
    )
    parser.add_argument("--image-groups", type=int, default=1)
    parser.add_argument("--weighting", choices=["layer_averaged", "bit_weighted"], default="layer_averaged")
    parser.add_argument("--protocols", nargs="+", default=["raw", "goldeneye"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    options = parser.parse_args()
    if options.pilot is None:
        options.pilot = 512 if options.shared_data is None else 128
    if options.shared_data is None:
        model, data, calibration = digits_model()
    else:
        model, data, calibration = resnet20(options.shared_data, options.images)
    print(
        "| protocol | seed | design | trials | SDC rate | half-width | fewer trials | less time |\n"
        "|---|---:|---|---:|---|---:|---:|---:|"
    )
    for protocol in options.protocols:
        for seed in options.seeds:
            compare_designs(model, data, calibration, protocol, seed, options)


def compare_designs(
    model: nn.Module, data: Images, calibration: Tensor, protocol: str, seed: int, options: argparse.Namespace
) -> None:
    """Run both designs and print a row each."""

    def run(seed: int, design: rh.UniformDesign | rh.StratifiedDesign) -> tuple[rh.CampaignResult, float]:
        start = time.perf_counter()
        result = rh.run_campaign(
            model,
            data,
            protocol=protocol,
            calibration=calibration,
            design=design,
            seed=seed,
            batch_size=64,
            progress=False,
        )
        return result, time.perf_counter() - start

    def row(label: str, trials: int, found: Estimate, factors: str) -> float:
        half = (found.high - found.low) / 2
        print(f"| {protocol} | {seed} | {label} | {trials:,} | {found} | {half:.3g} | {factors} |", flush=True)
        return half

    uniform, uniform_time = run(3 * seed, rh.UniformDesign(trials_per_site=options.trials_per_site))
    uniform_sdc = network_sdc(uniform, options.weighting)
    target = row("uniform", len(uniform.trials), uniform_sdc, "|")
    pilot, pilot_time = run(3 * seed + 1, rh.UniformDesign(trials_per_site=options.pilot))
    if not pilot.trials.events("sdc").any():
        print(f"  (the pilot of {len(pilot.trials):,} trials has no SDC with {protocol}; pass a larger --pilot)")
        return
    left = round(len(uniform.trials) * options.fraction) - len(pilot.trials)
    design = rh.neyman_design(pilot, total_trials=left, weighting=options.weighting, image_groups=options.image_groups)
    result, result_time = run(3 * seed + 2, design)
    found = network_sdc(result, options.weighting)
    # The square root law corrects for the remaining difference between the two half-widths.
    correction = ((uniform_sdc.high - uniform_sdc.low) / (found.high - found.low)) ** 2
    trials, seconds = len(pilot.trials) + len(result.trials), pilot_time + result_time
    factors = f"{len(uniform.trials) / trials * correction:.1f}x | {uniform_time / seconds * correction:.1f}x"
    half = row("pilot and stratified", trials, found, factors)
    print(f"  (ratio of half-widths {half / target:.2f}; the last two columns correct for it by the square root law)")


if __name__ == "__main__":
    main()
