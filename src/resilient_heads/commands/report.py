"""``resilient-heads report``."""

import argparse
from pathlib import Path


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its options."""
    parser = subparsers.add_parser("report", help="print a campaign's layers with their rates")
    parser.add_argument("source", type=Path, help="the campaign's folder or result")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print what was run, and the table of layers."""
    from resilient_heads.campaign.result.results import (
        CampaignResult,  # torch takes seconds: --help must not wait for it
    )
    from resilient_heads.report.tables import layer_table

    result = CampaignResult.load(arguments.source)
    accuracy = float(result.golden.correct.mean())
    print(f"{result!r}: seed {result.config.seed}, fault-free accuracy {accuracy:.2%} of {len(result.golden.labels)}")
    print(f"\n{layer_table(result)}")
