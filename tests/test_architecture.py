"""The folder tree is the architecture: docs/design.md maps every folder, and the code keeps to the map."""

import ast
import graphlib
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import resilient_heads as rh
from helpers.public_face import NAMESPACES, public_objects

PACKAGE = "resilient_heads"
SOURCE = Path(rh.__file__).parent
DESIGN = Path(__file__).parents[1] / "docs" / "design.md"
SHELL = {"", "__main__"}  # the public face and `python -m`: they may import every module
MOST_MODULES = 12
MOST_LINES = 350
MOST_PUBLIC_NAMES = 50


@dataclass(frozen=True)
class Module:
    """A source file: its dotted name below the package, its folder or itself at the top, what it imports."""

    name: str
    path: Path
    place: str
    imports: frozenset[str]

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text())


def dotted(path: Path) -> str:
    """Return the name of a file below the package; a folder's ``__init__.py`` has the folder's name."""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


def imported(path: Path, known: set[str]) -> frozenset[str]:
    """Return the modules of this package that a file imports, functions' bodies included."""
    names: set[str] = set()
    for part in ast.walk(ast.parse(path.read_text())):
        if isinstance(part, ast.Import):
            names |= {alias.name for alias in part.names}
        elif isinstance(part, ast.ImportFrom):
            folder = [PACKAGE, *path.relative_to(SOURCE).parts[: -part.level]] if part.level else []
            base = ".".join([*folder, *([part.module] if part.module else [])])
            full = {alias.name: f"{base}.{alias.name}" for alias in part.names}
            names |= {name if name.removeprefix(f"{PACKAGE}.") in known else base for name in full.values()}
    inside = {name.removeprefix(PACKAGE).lstrip(".") for name in names if name.split(".")[0] == PACKAGE}
    return frozenset(inside & known)


@cache
def modules() -> dict[str, Module]:
    """Return every module of the package by its dotted name."""
    paths = {dotted(path): path for path in sorted(SOURCE.rglob("*.py"))}
    result = {}
    for name, path in paths.items():
        place = name if path.name == "__init__.py" else name.rpartition(".")[0] or name
        result[name] = Module(name, path, place, imported(path, set(paths)) - {name})
    return result


def inner_modules() -> list[Module]:
    return [module for module in modules().values() if module.name not in SHELL]


@cache
def rows() -> list[tuple[list[str], str, str]]:
    """Return the rows of the map: places, what they are for, what they may import."""
    section = DESIGN.read_text().partition("## The map")[2].partition("\n## ")[0]
    matches = re.findall(r"^\| ([a-z_., ]+) \| (.+) \| ([a-z_., ]+) \|$", section, re.M)
    return [(places.split(", "), purpose, allowed) for places, purpose, allowed in matches if "folder" not in places]


@cache
def ground() -> set[str]:
    """Return the modules that every other one may import: the first row of the map."""
    places, purpose, allowed = rows()[0]
    assert purpose.startswith("the ground")
    assert allowed == "nothing"
    return set(places)


@cache
def allowed_imports() -> dict[str, set[str] | None]:
    """Return what each place may import beside the ground; None is everything."""
    return {
        place: None if allowed == "everything" else set(allowed.split(", ")) - {"nothing"}
        for places, _, allowed in rows()
        for place in places
    }


def places_used_by(place: str) -> set[str]:
    members = [module for module in inner_modules() if module.place == place]
    return {modules()[target].place for module in members for target in module.imports} - {place}


def test_the_map_names_every_folder_and_no_other() -> None:
    exist = {module.place for module in inner_modules() if module.path.name != "__init__.py"} | {"assets"}
    assert set(allowed_imports()) == exist


def test_the_map_names_each_place_once() -> None:
    places = [place for names, _, _ in rows() for place in names]
    assert len(places) == len(set(places))


def test_the_map_goes_from_the_bottom_up() -> None:
    """A place may import only places that stand above it in the table, so that it reads from top to bottom."""
    seen: set[str] = set()
    for places, _, allowed in rows():
        seen |= set(places)
        if allowed not in ("everything", "nothing"):
            assert set(allowed.split(", ")) <= seen, places


@pytest.mark.parametrize("place", sorted(allowed_imports()))
def test_a_place_imports_what_the_map_allows(place: str) -> None:
    allowed = allowed_imports()[place]
    if allowed is not None:
        assert places_used_by(place) - ground() == allowed


def test_the_ground_imports_only_the_ground() -> None:
    assert {place: places_used_by(place) - ground() for place in ground()} == {place: set() for place in ground()}


def test_no_circles_among_modules() -> None:
    graph = {module.name: module.imports for module in inner_modules()}
    list(graphlib.TopologicalSorter(graph).static_order())


def test_no_circles_among_folders() -> None:
    graph = {module.place: places_used_by(module.place) for module in inner_modules()}
    list(graphlib.TopologicalSorter(graph).static_order())


def test_only_the_shell_imports_the_public_face() -> None:
    users = {module.name for module in inner_modules() if "" in module.imports}
    assert {name for name in users if allowed_imports()[modules()[name].place] is not None} == set()


def test_no_function_imports_a_module_of_the_library() -> None:
    """Such imports hide circles. The command line may: it shows its help before torch is loaded."""
    late = set()
    for module in inner_modules():
        functions = [part for part in ast.walk(module.tree) if isinstance(part, ast.FunctionDef)]
        inside = [part for function in functions for part in ast.walk(function) if isinstance(part, ast.ImportFrom)]
        if module.place not in ("commands", "cli") and any((part.module or "").startswith(PACKAGE) for part in inside):
            late.add(module.name)
    assert late == set()


def test_no_module_imports_a_private_name() -> None:
    private = {
        f"{module.name}: {alias.name}"
        for module in inner_modules()
        for part in ast.walk(module.tree)
        if isinstance(part, ast.ImportFrom)
        for alias in part.names
        if alias.name.startswith("_") and alias.name != "__version__"
    }
    assert private == set()


def test_folders_are_small() -> None:
    counts = {folder: len(list(folder.glob("[!_]*.py"))) for folder in {m.path.parent for m in modules().values()}}
    counts.pop(SOURCE)  # its modules are the ground, the namespaces and the command line
    assert {folder.name: count for folder, count in counts.items() if count > MOST_MODULES} == {}


def test_modules_are_short() -> None:
    lines = {module.name: module.path.read_text().count("\n") for module in modules().values()}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_the_public_face_is_small_and_sorted() -> None:
    names = list(rh.__all__)
    assert len(names) <= MOST_PUBLIC_NAMES
    assert names == sorted(names)
    assert set(names) <= set(dir(rh))
    with pytest.raises(AttributeError, match="attribute wrap"):
        _ = rh.wrap  # type: ignore[attr-defined]


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_a_namespace_is_sorted_and_introduces_itself(namespace: str) -> None:
    module = getattr(rh, namespace)
    names = list(module.__all__)
    assert sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name)) == names or (
        names == sorted(names)
    )
    assert module.__doc__


def test_every_public_name_has_a_docstring() -> None:
    documented = {name: value.__doc__ for name, value in public_objects().items() if callable(value)}
    assert [name for name, docstring in documented.items() if not docstring] == []


def loaded_after(statement: str) -> set[str]:
    """Return the modules that a fresh interpreter has loaded after a statement."""
    code = f"{statement}; import sys; print(' '.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_the_import_itself_loads_neither_torch_nor_numpy() -> None:
    assert loaded_after(f"import {PACKAGE}") & {"torch", "numpy"} == set()


def test_heads_load_little_more_than_torch() -> None:
    heavy = {"torch._dynamo", "torch.distributed.fsdp", "huggingface_hub", "open_clip", "scipy", "sympy"}
    loaded = loaded_after(f"import {PACKAGE} as rh; rh.TextGuidedHead; rh.wrap_model")
    assert (loaded - loaded_after("import torch")) & heavy == set()


def test_no_public_name_loads_an_optional_package() -> None:
    optional = {
        "open_clip",
        "timm",
        "matplotlib",
        "pandas",
        "pyarrow",
        "torchvision",
        "sklearn",
        "sentence_transformers",
    }
    every_name = "; ".join(f"rh.{name}" for name in rh.__all__)
    assert loaded_after(f"import {PACKAGE} as rh; {every_name}") & optional == set()


def test_help_does_not_wait_for_torch() -> None:
    assert "torch" not in loaded_after(f"from {PACKAGE}.cli import build_parser; build_parser().format_help()")
