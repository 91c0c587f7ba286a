"""docs/api.md lists every public name once, under the namespace that has it."""

import re
from pathlib import Path
from types import ModuleType

import pytest

import resilient_heads as rh

PAGE = (Path(__file__).parents[1] / "docs" / "api.md").read_text()
SPACES = {
    f"resilient_heads.{name}": getattr(rh, name) for name in rh.__all__ if isinstance(getattr(rh, name), ModuleType)
}


def listed() -> list[tuple[str, str]]:
    """Return (module, name) for every class and function that the page documents by name."""
    found, module = [], ""
    for directive, target in re.findall(r"^\.\. (currentmodule|autoclass|autodata|autofunction):: (\S+)", PAGE, re.M):
        if directive == "currentmodule":
            module = target
        else:
            found.append((module, target))
    return found


@pytest.mark.parametrize("module", ["resilient_heads", *sorted(set(SPACES) - {"resilient_heads.errors"})])
def test_the_page_lists_the_names_of_a_namespace(module: str) -> None:
    public = set(SPACES[module].__all__) if module in SPACES else set(rh.__all__) - {n.split(".")[1] for n in SPACES}
    assert sorted(name for place, name in listed() if place == module) == sorted(public)


def test_the_page_documents_all_errors_at_once() -> None:
    assert ".. automodule:: resilient_heads.errors\n   :members:" in PAGE


def test_each_namespace_introduces_itself_on_the_page() -> None:
    assert set(re.findall(r"^\.\. automodule:: (\S+)", PAGE, re.M)) == set(SPACES)
