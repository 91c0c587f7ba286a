"""Checks of arguments: each returns the checked value, or raises an error that says what it expected and what it found.

Every function takes the name by which the caller knows the argument, and the class of the error to raise.
"""

import operator
import unicodedata
from collections.abc import Sequence
from numbers import Real
from typing import Any, Literal, TypeVar

from resilient_heads.errors import ArgumentError

T = TypeVar("T")
Kind = type[Exception]


def whole_number(
    name: str, value: Any, *, least: int | None = None, most: int | None = None, error: Kind = ArgumentError
) -> int:
    """Return a whole number between two bounds as an ``int``; accept integers of numpy, refuse booleans.

    >>> whole_number("batch_size", 0, least=1)
    Traceback (most recent call last):
    resilient_heads.errors.ArgumentError: batch_size must be a whole number of at least 1, found 0.
    """
    try:
        whole = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        whole = None
    if whole is None or (least is not None and whole < least) or (most is not None and whole > most):
        if least is not None and most is not None:
            bounds = f" from {_power(least)} to {_power(most)}"
        else:
            bounds = "" if least is None else f" of at least {least}"
            bounds += "" if most is None else f" of at most {most}"
        raise error(f"{name} must be a whole number{bounds}, found {_shown(value)}.")
    return whole


def seed_number(value: Any, *, name: str = "seed") -> int:
    """Return a seed of the random draws: a whole number from 0 to 2**64 - 1."""
    return whole_number(name, value, least=0, most=2**64 - 1)


def real_number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    error: Kind = ArgumentError,
) -> float:
    """Return a number between bounds as a ``float``; refuse booleans and NaN. ``above`` and ``below`` are exclusive.

    >>> real_number("level", 99, above=0, below=1)
    Traceback (most recent call last):
    resilient_heads.errors.ArgumentError: level must be a number above 0 and below 1, found 99.
    """
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else float("nan")
    conditions = [
        ("of at least", least, operator.ge),
        ("above", above, operator.gt),
        ("of at most", most, operator.le),
        ("below", below, operator.lt),
    ]
    given = [(words, bound, holds) for words, bound, holds in conditions if bound is not None]
    if number != number or not all(holds(number, bound) for _, bound, holds in given):
        bounds = " and ".join(f"{words} {bound:g}" for words, bound, _ in given)
        raise error(f"{name} must be a number{bounds and ' '}{bounds}, found {_shown(value)}.")
    return number


def one_of(name: str, value: T, choices: Sequence[T], *, error: Kind = ArgumentError) -> T:
    """Return one of several choices.

    >>> one_of("engine", "fast", ("incremental", "full"))
    Traceback (most recent call last):
    resilient_heads.errors.ArgumentError: engine must be "incremental" or "full", found "fast".
    """
    if not isinstance(value, tuple({type(choice) for choice in choices})) or value not in choices:
        words = " or ".join(", ".join(_shown(choice) for choice in choices).rsplit(", ", 1))
        raise error(f"{name} must be {words}, found {_shown(value)}.")
    return value


def true_or_false(name: str, value: Any, *, error: Kind = ArgumentError) -> bool:
    """Return a boolean; accept those of numpy."""
    value = value.item() if hasattr(value, "item") and getattr(value, "size", 1) == 1 else value
    return bool(one_of(name, value, (True, False), error=error))


def instance_of(name: str, value: Any, kind: type[T], *, example: str = "", error: Kind = ArgumentError) -> T:
    """Return an object of a class; ``example`` is code that makes one.

    >>> instance_of("protection", True, dict, example="dict(checksum=True)")
    Traceback (most recent call last):
    resilient_heads.errors.ArgumentError: protection must be a dict, such as dict(checksum=True); found True.
    """
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        such_as = f", such as {example};" if example else ","
        raise error(f"{name} must be {article} {kind.__name__}{such_as} found {_shown(value)}.")
    return value


def strings(
    name: str, values: Any, *, example: str, may_be_empty: bool = False, error: Kind = ArgumentError
) -> tuple[str, ...]:
    """Return a sequence of strings as a tuple; refuse a single string. ``example`` is code that makes one.

    >>> strings("layers", "fc", example='["fc"]')
    Traceback (most recent call last):
    resilient_heads.errors.ArgumentError: layers must be a sequence of strings, such as ["fc"]; found "fc".
    """
    is_sequence = isinstance(values, Sequence) and not isinstance(values, str | bytes)
    if not is_sequence or not all(isinstance(value, str) for value in values) or not (values or may_be_empty):
        raise error(f"{name} must be a sequence of strings, such as {example}; found {_shown(values)}.")
    return tuple(values)


def printable(text: object) -> str:
    r"""Return a name or path as text that every terminal can print: control characters and stray bytes are escaped.

    >>> print(printable("cat\x1b[31m"))
    cat\x1b[31m
    """
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in str(text))


def _shown(value: object) -> str:
    """Return how an error shows a value: as code, cut where it is long."""
    code = f'"{value}"' if isinstance(value, str) and '"' not in value else repr(value)
    return code if len(code) <= 80 else f"{code[:77]}..."


def _power(bound: int) -> str:
    """Return a bound as text, a large power of two less one as such."""
    large = bound > 2**30 and (bound + 1) & bound == 0
    return f"2**{bound.bit_length()} - 1" if large else str(bound)


def normalized(text: str, form: Literal["NFC", "NFKC"] = "NFC") -> str:
    """Return a text in a normal form of Unicode; leave one as it is whose accents pile up without end.

    The time to normalize a run of accents grows with the square of its length. No language has more than 30 of them
    (Source: Unicode Standard Annex 15, "Stream-Safe Text Format").
    """
    run = 0
    for character in () if text.isascii() else text:
        run = run + 1 if unicodedata.combining(character) else 0
        if run > 30:
            return text
    return unicodedata.normalize(form, text)
