"""The folder tree is the architecture: docs/design.md maps every folder, and the code keeps to the map."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import resilient_heads as rh

SOURCE = Path(rh.__file__).parent
DESIGN = Path(__file__).parents[1] / "docs" / "design.md"
GROUND = {"errors", "files", "extras", "evaluation"}
SHELL = {"__init__", "__main__"}
MOST_MODULES = 12
MOST_LINES = 350


def modules() -> dict[str, Path]:
    """Return every module's dotted name below the package, and its file; a package goes by its own name."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def node(module: str) -> str:
    """Return the place on the map of a module: its folder, or itself where it lies at the top."""
    path = modules()[module]
    if path.name == "__init__.py":
        return module
    return module.rpartition(".")[0] or module


def imports(path: Path) -> set[str]:
    """Return the modules of this package that a file imports, functions' bodies included."""
    known, found = modules(), set()
    for part in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(part, ast.ImportFrom) and part.module and part.module.startswith("resilient_heads"):
            base = part.module.removeprefix("resilient_heads").lstrip(".")
            names = [f"{base}.{alias.name}".lstrip(".") for alias in part.names]
            names = [name if name in known else base for name in names]
        elif isinstance(part, ast.Import):
            names = [alias.name.removeprefix("resilient_heads.") for alias in part.names]
        found |= {name for name in names if name in known}
    return found


def the_map() -> dict[str, set[str] | None]:
    """Return what each place may import, as docs/design.md says; None is everything."""
    places: dict[str, set[str] | None] = {}
    for names, _, allowed in re.findall(r"^\| ([a-z_., ]+) \| (.+) \| ([a-z_., ]+) \|$", DESIGN.read_text(), re.M):
        targets = None if allowed == "everything" else set(allowed.split(", ")) - {"nothing"}
        places |= dict.fromkeys(names.split(", "), targets)
    places.pop("folder or module")
    return places


PLACES = the_map()


def test_the_map_is_complete() -> None:
    assert set(PLACES) >= GROUND
    rooms = {node(name) for name, path in modules().items() if path.name != "__init__.py"} - SHELL
    assert rooms <= set(PLACES), "folders that the map lacks"
    assert set(PLACES) <= rooms | {"assets"}, "places on the map that do not exist"


@pytest.mark.parametrize("place", sorted(PLACES))
def test_arrows_point_where_the_map_says(place: str) -> None:
    allowed = PLACES[place]
    for name, path in modules().items():
        if allowed is not None and node(name) == place:
            reached = {node(target) for target in imports(path)} - {place} - GROUND
            assert reached <= allowed, name


def test_the_map_has_no_arrow_that_nothing_uses() -> None:
    for place, allowed in PLACES.items():
        used = {node(target) for name, path in modules().items() if node(name) == place for target in imports(path)}
        assert (allowed or set()) <= used, place


def test_no_circles_among_modules() -> None:
    graph = {name: imports(path) - {name} for name, path in modules().items() if name not in SHELL}
    list(graphlib.TopologicalSorter(graph).static_order())


def test_no_circles_among_folders() -> None:
    graph: dict[str, set[str]] = {}
    for name, path in modules().items():
        if name not in SHELL:
            graph.setdefault(node(name), set()).update({node(target) for target in imports(path)} - {node(name)})
    list(graphlib.TopologicalSorter(graph).static_order())


def test_no_inner_module_imports_the_face() -> None:
    for name, path in modules().items():
        for part in ast.walk(ast.parse(path.read_text())):
            if isinstance(part, ast.ImportFrom) and PLACES.get(node(name), None) is not None:
                assert part.module != "resilient_heads", name


def test_rooms_are_small_and_modules_short() -> None:
    for folder in {path.parent for path in modules().values()}:
        own = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(own) <= MOST_MODULES, folder
    long = {name: path.read_text().count("\n") for name, path in modules().items()}
    assert {name: lines for name, lines in long.items() if lines > MOST_LINES} == {}


def test_the_public_face_is_complete_and_documented() -> None:
    namespaces = {"encoders", "errors", "faults", "formats", "report", "statistics"}
    assert namespaces <= set(rh.__all__)
    for name in rh.__all__:
        assert getattr(rh, name).__doc__, name
    for space in sorted(namespaces):
        module = getattr(rh, space)
        assert list(module.__all__) == sorted(module.__all__, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
        for name in module.__all__:
            assert getattr(module, name).__doc__ or name.isupper(), f"{space}.{name}"
    with pytest.raises(AttributeError, match="wrap"):
        _ = rh.wrap  # type: ignore[attr-defined]


def loaded_by(statement: str) -> set[str]:
    """Return the modules that a fresh interpreter has loaded after a statement."""
    code = f"{statement}; import sys; print(' '.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_import_stays_light() -> None:
    heavy = {"open_clip", "timm", "matplotlib", "pandas", "pyarrow", "torchvision", "sklearn", "sentence_transformers"}
    assert not loaded_by("import resilient_heads") & (heavy | {"torch", "numpy"})
    every_name = "; ".join(f"resilient_heads.{name}" for name in rh.__all__)
    assert not loaded_by(f"import resilient_heads; {every_name}") & heavy


def test_help_does_not_wait_for_torch() -> None:
    assert "torch" not in loaded_by("from resilient_heads.cli import build_parser; build_parser().format_help()")
