"""One word, one meaning: code and prose use the terms of docs/glossary.md and not the words that they replaced."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "resilient_heads"

# A word that no name in the source may hold, and the term that says what is meant.
NOT_IN_NAMES = {
    "hit": "injected, faulty or flipped",
    "hits": "events or injections",
    "holder": "wrapper",
    "ledger": "verification",
    "own": "the noun that is meant",
    "rerun": "the incremental engine's verb: run, follow, play",
    "reruns": "the incremental engine",
    "share": "weight, fraction or uniform",
    "shares": "weights, fractions or uniforms",
    "strike": "inject",
    "strikes": "injections",
    "struck": "injected, or site",
    "tap": "hook",
    "taps": "hooks",
    "tell": "report or warn",
    "tells": "detects or reports",
    "ticket": "image_weight",
    "tickets": "image_weights",
    "told": "reported or warned",
    "unstruck": "excluded or uninjectable",
}
# A phrase that no page, docstring, comment or message may hold, and a plain one.
NOT_IN_PROSE = {
    r"\btold\b": "reported",
    r"\blets? go of\b": "drops, frees",
    r"\bcould not be had\b": "could not be downloaded",
    r"(?<!\")\btickets?\b": "image weights",
    r"\bunstruck\b": "excluded or uninjectable",
    r"\bhits?\b": "injects, flips",
    r"\bcame by\b": "ran",
    r"\bwhatever\b": "any",
    r"\bseldom\b": "rarely",
    r"\boftener\b": "more often",
    r"\bplain (pass|loop)\b": "full pass",
}


def words(name: str) -> set[str]:
    """Split snake_case and CamelCase."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


@cache
def names(path: Path) -> frozenset[str]:
    """Return every name that a module defines or uses."""
    seen = {path.stem}
    for part in ast.walk(ast.parse(path.read_text())):
        match part:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name) | ast.keyword(arg=str(name)):
                seen.add(name)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                seen.add(name)
    return frozenset(seen)


@pytest.mark.parametrize("word", NOT_IN_NAMES)
def test_names_in_the_source_use_the_terms_of_the_glossary(word: str) -> None:
    places = {
        f"{path.relative_to(SOURCE)}: {name}"
        for path in SOURCE.rglob("*.py")
        for name in names(path)
        if word in words(name)
    }
    assert places == set(), f"instead of {word!r} say {NOT_IN_NAMES[word]}"


PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(ROOT / "docs").glob("*.md"),
    *(path for folder in ("src", "tests", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py")),
]


@pytest.mark.parametrize("phrase", NOT_IN_PROSE)
def test_prose_uses_plain_words(phrase: str) -> None:
    places = {
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in PAGES
        if path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(phrase, line, re.IGNORECASE)
    }
    assert places == set(), f"say {NOT_IN_PROSE[phrase]}"


def test_a_word_inside_a_name_is_found() -> None:
    assert words("struck_sites") == {"struck", "sites"}
    assert words("StruckSite") == {"struck", "site"}
    assert "hit" not in words("architecture")
