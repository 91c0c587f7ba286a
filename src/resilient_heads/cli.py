"""The command ``resilient-heads``: parse, call, exit code."""

import argparse
import sys
from collections.abc import Sequence

from resilient_heads import __version__
from resilient_heads.commands import demo, embed, embeddings
from resilient_heads.errors import ResilientHeadsError

COMMANDS = (demo, embed, embeddings)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="resilient-heads",
        description="Text-guided classifier heads, and the campaigns that measure what they gain.",
    )
    parser.add_argument("--version", action="version", version=f"resilient-heads {__version__}")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.register(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0 done, 1 refused with a message, 2 wrong usage, 130 interrupted."""
    chosen = build_parser().parse_args(arguments)
    try:
        chosen.run(chosen)
    except (ResilientHeadsError, OSError) as error:
        print(f"resilient-heads: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("resilient-heads: interrupted", file=sys.stderr)
        return 130
    return 0
