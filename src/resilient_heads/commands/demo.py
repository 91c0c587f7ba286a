"""``resilient-heads demo``."""

import argparse
from pathlib import Path

import resilient_heads as rh
from resilient_heads.campaign.result.protocol import PROTOCOLS
from resilient_heads.checks import whole_number


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its options."""
    parser = subparsers.add_parser(
        "demo",
        help="train a ResNet-18 with and without a text-guided head on digits, inject faults into both, compare",
        description="Train a ResNet-18 with and without a text-guided head on scikit-learn's digits, inject faults "
        "into both, and write a table and a plot that compare them.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, batches and trials")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder for tables, plot and trials")
    parser.add_argument("--trials-per-site", type=int, default=512, help="number of trials at each site and protocol")
    parser.add_argument("--protocol", choices=[*PROTOCOLS, "both"], default="both", help="how flips are applied")
    parser.add_argument("--device", default="cpu", help="device to train and inject on, such as cuda")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the demo, print its table and the names of the files it wrote."""
    options = rh.demo.DemoOptions(
        seed=whole_number("--seed", arguments.seed, least=0, most=2**32 - 1),  # the largest seed of scikit-learn
        output=arguments.output,
        trials_per_site=whole_number("--trials-per-site", arguments.trials_per_site, least=1),
        protocols=tuple(PROTOCOLS) if arguments.protocol == "both" else (arguments.protocol,),
        device=arguments.device,
    )
    print(rh.demo.run_demo(options))
    print(f"Written to {options.output.resolve()}: table.md, layers.png and a folder for each campaign.")
