"""The command ``resilient-heads``: parse the arguments, run one command, return an exit code."""

import argparse
import io
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
        description="Give classifiers text-guided heads, and measure by fault injection how resilient models are.",
        epilog="Exit codes: 0 done, 1 an error with a message, 2 a command line that cannot be understood, "
        "130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"resilient-heads {__version__}")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.register(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 an error with a message, 130 interrupted.

    A command line that cannot be understood raises SystemExit with the exit code 2.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of classes may not be in the terminal's alphabet
    chosen = build_parser().parse_args(arguments)
    try:
        with one_line_warnings():
            chosen.run(chosen)
    except (ResilientHeadsError, OSError) as error:
        print(f"resilient-heads: {_message(error)}", file=sys.stderr)
        return 1
    except SystemExit as end:
        code = 0 if end.code is None else end.code
        print(f"resilient-heads: code of the model, or of a library, ended the program ({code})", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"resilient-heads: interrupted{getattr(chosen, 'after_interrupt', '')}", file=sys.stderr)
        return 130
    return 0


def _message(error: Exception) -> str:
    """Return an error's message, without the number that the system gives to it."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """Print each warning of the block in one line, like an error, without its place in the code."""

    def one_line(message: Warning | str, *_place: object, **_line: object) -> str:
        return f"resilient-heads: {message}\n"

    usual, warnings.formatwarning = warnings.formatwarning, one_line
    try:
        yield
    finally:
        warnings.formatwarning = usual
