"""The command ``resilient-heads``: parse, call, exit code."""

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from resilient_heads import __version__
from resilient_heads.commands import campaign, demo, embed, embeddings, merge, replay, report
from resilient_heads.errors import ResilientHeadsError

COMMANDS = (demo, campaign, merge, replay, report, embed, embeddings)


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
        with _warnings_in_a_line():
            chosen.run(chosen)
    except (ResilientHeadsError, OSError) as error:
        print(f"resilient-heads: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("resilient-heads: interrupted", file=sys.stderr)
        return 130
    return 0


@contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    """Print warnings as the errors are printed, without the place in the code."""

    def one_line(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        return f"resilient-heads: {message}\n"

    kept, warnings.formatwarning = warnings.formatwarning, one_line
    try:
        yield
    finally:
        warnings.formatwarning = kept
