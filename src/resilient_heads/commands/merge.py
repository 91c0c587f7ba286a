"""``resilient-heads merge``."""

import argparse
from pathlib import Path


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its options."""
    parser = subparsers.add_parser("merge", help="put the chunks of a campaign's processes together into one result")
    parser.add_argument("folder", type=Path, help="the campaign's folder; result.parquet is written there")
    parser.add_argument("others", type=Path, nargs="*", help="further folders of it, from other machines")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Merge and say where the result is."""
    from resilient_heads.campaign.run.merge import merge_campaign  # torch takes seconds: --help must not wait for it

    result = merge_campaign(arguments.folder, *arguments.others)
    print(
        f"{len(result.trials):,} trials at {len(result.sites)} sites written to {arguments.folder / 'result.parquet'}"
    )
