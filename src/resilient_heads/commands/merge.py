"""``resilient-heads merge``."""

import argparse
from pathlib import Path

import resilient_heads as rh


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its options."""
    parser = subparsers.add_parser(
        "merge",
        help="combine the trials of a campaign's processes into one result",
        description="Combine the trials that several processes wrote into one file, FOLDER/result.parquet. If trials "
        "are missing, the command names them and writes nothing.",
    )
    parser.add_argument("folder", type=Path, help="the campaign's folder; the command writes result.parquet there")
    parser.add_argument("others", type=Path, nargs="*", help="folders with the campaign's trials from other machines")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Merge the trials and print the path of the result."""
    result = rh.merge_campaign(arguments.folder, *arguments.others)
    written = arguments.folder / "result.parquet"
    print(f"{len(result.trials):,} trials at {len(result.sites)} sites written to {written}")
