"""The folder tree is the architecture: which room may import which, and that no two import each other."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import resilient_heads as rh

SOURCE = Path(rh.__file__).parent
GROUND = {"errors", "files", "extras", "evaluation"}
MAY_IMPORT = {
    "errors": set(),
    "files": set(),
    "extras": {"errors"},
    "evaluation": set(),
    "assets": set(),
    "text": GROUND | {"text"},
    "rerun": {"rerun"},
    "injection": {"errors", "evaluation", "rerun", "injection"},
    "metrics": {"errors", "metrics"},
    "heads": GROUND | {"text", "heads"},
    "campaign": GROUND | {"rerun", "injection", "metrics", "campaign"},
    "inputs": {"errors", "extras", "inputs"},
    "report": GROUND | {"campaign", "metrics", "report"},
}
TOP = {"cli", "commands", "demo", "__main__", "__init__"}


def modules() -> dict[str, Path]:
    found = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts)] = path
    return found


def imports(path: Path) -> set[str]:
    """Return the modules of this package that a file imports, functions' bodies included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    known = modules()
    inner = {name.removeprefix("resilient_heads.") for name in names if name.startswith("resilient_heads.")}
    return inner & set(known)


def test_every_room_is_known() -> None:
    rooms = {name.split(".")[0] for name in modules()}
    assert rooms == set(MAY_IMPORT) | TOP


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_arrows_point_down(room: str) -> None:
    for name, path in modules().items():
        if name.split(".")[0] == room:
            reached = {target.split(".")[0] for target in imports(path)}
            assert reached <= MAY_IMPORT[room], name


def test_no_circles() -> None:
    graph = {name: imports(path) for name, path in modules().items() if name != "__init__"}
    list(graphlib.TopologicalSorter(graph).static_order())


def test_no_inner_module_imports_the_face() -> None:
    for name, path in modules().items():
        if name.split(".")[0] in MAY_IMPORT:
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom):
                    assert node.module != "resilient_heads", name


def test_the_public_face_is_sorted_and_true() -> None:
    assert rh.__all__ == sorted(rh.__all__, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    assert set(rh.__all__) == set(rh._HOME)
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    typed = {
        alias.asname: f"{node.module}"
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == {name: f"resilient_heads.{home}" for name, home in rh._HOME.items()}
    for name in rh.__all__:
        assert getattr(rh, name).__doc__ or name.isupper(), name
    with pytest.raises(AttributeError, match="no attribute 'wrap'"):
        _ = rh.wrap  # type: ignore[attr-defined]


def loaded_by(statement: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after a statement."""
    code = f"{statement}; import sys; print(' '.join({{name.split('.')[0] for name in sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_import_stays_light() -> None:
    heavy = {"open_clip", "timm", "matplotlib", "pandas", "pyarrow", "torchvision", "sklearn", "sentence_transformers"}
    assert not loaded_by("import resilient_heads") & (heavy | {"torch", "numpy"})
    every_name = "; ".join(f"resilient_heads.{name}" for name in rh.__all__)
    assert not loaded_by(f"import resilient_heads; {every_name}") & heavy


def test_help_does_not_wait_for_torch() -> None:
    assert "torch" not in loaded_by("from resilient_heads.cli import build_parser; build_parser().format_help()")
