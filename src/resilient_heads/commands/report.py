"""``resilient-heads report``."""

import argparse
from pathlib import Path

import resilient_heads as rh


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its options."""
    parser = subparsers.add_parser(
        "report",
        help="print the rates of each site of a campaign",
        description="Print what a campaign ran, its fault-free accuracy, and a table with the rates of each site, and "
        "those of all sites together, with 99 %% intervals. The campaign must be complete.",
    )
    parser.add_argument("folder", type=Path, help="the campaign's folder")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print what the campaign ran, the table of sites, and its summary."""
    result = rh.CampaignResult.load(arguments.folder)
    accuracy, images = float(result.golden.correct.mean()), len(result.golden.labels)
    print(f"{result!r}: seed {result.config.seed}, fault-free accuracy {accuracy:.2%} on {images} images")
    print(f"\n{rh.report.layer_table(result)}\n{result.summary()}")
