"""How values look as text: they fit a screen, and say the most important first."""

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import Any

WIDTH = 100
"""Columns of a screen."""
_LONGEST_VALUE = 60


def cut(text: str, width: int) -> str:
    """Return a text on one line, cut to a width.

    >>> cut("layer4.1.conv2", 8)
    'layer...'
    """
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 3]}..."


def wrapped(text: str) -> str:
    """Return a text in lines that fit a screen; later lines are indented."""
    return "\n".join(textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False))


def as_code(value: Any, **instead: str) -> str:
    """Return a dataclass as code: only the fields that differ from their defaults, and long values cut.

    Args:
        value: An instance of a dataclass.
        instead: What to show in place of the values of some fields.
    """
    given = {
        field.name: getattr(value, field.name) for field in dataclasses.fields(value) if not _is_default(value, field)
    }
    shown = [f"{name}={instead.get(name) or cut(repr(content), _LONGEST_VALUE)}" for name, content in given.items()]
    return wrapped(f"{type(value).__name__}({', '.join(shown)})")


def shortened(lines: Sequence[str], most: int = 20) -> str:
    """Return the first lines, and how many are left out."""
    left_out = [] if len(lines) <= most else [f"... and {len(lines) - most + 1:,} more"]
    return "\n".join([*lines[: most - len(left_out)], *left_out])


def spans(numbers: Sequence[int], most: int = 20) -> str:
    """Return rising whole numbers as text; three or more in a row are one span.

    >>> spans([0, 4, 5, 18, 19, 20, 21])
    '0, 4, 5, 18 to 21'
    >>> spans(range(0, 100, 2), most=3)
    '0, 2, 4, ...'
    """
    groups: list[list[int]] = []
    for number in numbers:
        if groups and number == groups[-1][-1] + 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    texts: list[str] = []
    for group in groups:
        texts += [f"{group[0]} to {group[-1]}"] if len(group) > 2 else map(str, group)
    return ", ".join(texts[:most]) + (", ..." if len(texts) > most else "")


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)


def percent(fraction: float) -> str:
    """Return a level as text.

    >>> percent(0.99)
    '99 %'
    """
    return f"{100 * fraction:.6g} %"


def _is_default(value: Any, field: "dataclasses.Field[Any]") -> bool:
    content = getattr(value, field.name)
    return field.default is not dataclasses.MISSING and (content is field.default or bool(content == field.default))
