"""A model file runs as an import runs it, and errors name the line that raised them."""

import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers.small_campaign import arguments
from resilient_heads.cli import main
from resilient_heads.errors import ModelError
from resilient_heads.inputs.python_file import model_from_file

IMPORTS = "import sys\nimport torch\nfrom torch import nn\n"
GOOD = {
    "annotations": (
        "from __future__ import annotations\n"
        + IMPORTS
        + "from dataclasses import dataclass, field\n@dataclass\nclass Options:\n    width: int = 3\n"
        "    names: list[str] = field(default_factory=list)\n"
        "def make() -> nn.Module:\n    return nn.Linear(2, Options().width)\n"
    ),
    "slots and typing": (
        "from __future__ import annotations\n"
        + IMPORTS
        + "import typing, dataclasses, enum\nclass Kind(enum.Enum):\n    A = 1\n"
        "@dataclasses.dataclass(slots=True, frozen=True)\nclass Options:\n    kind: Kind = Kind.A\n"
        "def make():\n    assert typing.get_type_hints(Options)['kind'] is Kind\n    return nn.Linear(2, 3)\n"
    ),
    "a sibling": IMPORTS + "import beside_it\ndef make():\n    return beside_it.model\n",
    "a sibling later": IMPORTS + "def make():\n    import beside_it\n    return beside_it.model\n",
    "data beside it": (
        IMPORTS + "from pathlib import Path\nwidth = int((Path(__file__).parent / 'width.txt').read_text())\n"
        "def make():\n    return nn.Linear(2, width)\n"
    ),
    "a class": IMPORTS + "class make(nn.Linear):\n    def __init__(self):\n        super().__init__(2, 3)\n",
    "a model": IMPORTS + "make = nn.Linear(2, 3)\n",
    "a lambda": IMPORTS + "make = lambda width=3: nn.Linear(2, width)\n",
    "a partial": IMPORTS + "import functools\nmake = functools.partial(nn.Linear, 2, 3)\n",
    "main": IMPORTS + "def make():\n    return nn.Linear(2, 3)\nif __name__ == '__main__':\n    sys.exit(7)\n",
    "arguments": (
        IMPORTS
        + "import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('--width', type=int, default=3)\n"
        "options = parser.parse_args()\ndef make():\n    return nn.Linear(2, options.width)\n"
    ),
    "pickled": (
        IMPORTS + "import copy, pickle\nclass Net(nn.Linear):\n    pass\n"
        "def make():\n    return pickle.loads(pickle.dumps(Net(2, 3)))\n"
    ),
    "itself replaced": IMPORTS
    + "class Lazy:\n    def make(self):\n        return nn.Linear(2, 3)\nsys.modules[__name__] = Lazy()\n",
    "path changed": IMPORTS
    + "sys.path = [p for p in sys.path if 'site' in p]\ndef make():\n    return nn.Linear(2, 3)\n",
}


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["resilient-heads", "campaign", "--model", "x"])


@pytest.mark.parametrize("case", GOOD)
def test_a_file_behaves_as_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.delitem(sys.modules, "beside_it", raising=False)
    (tmp_path / "beside_it.py").write_text("from torch import nn\nmodel = nn.Linear(2, 3)\n")
    (tmp_path / "width.txt").write_text("3")
    (tmp_path / "net.py").write_text(GOOD[case])
    monkeypatch.chdir(tmp_path.parent)
    model = model_from_file(Path(tmp_path.name) / "net.py", "make")
    assert model(torch.zeros(1, 2)).shape == (1, 3)
    assert sys.argv[1] == "campaign"
    assert "net" not in sys.modules
    assert type(pickle.loads(pickle.dumps(model))) is type(model)


def test_imports_inside_forward_find_the_folder_and_nothing_shadows_the_library(tmp_path: Path) -> None:
    (tmp_path / "late_one.py").write_text("value = 5.0\n")
    (tmp_path / "tqdm.py").write_text("raise RuntimeError('shadowed')\n")
    (tmp_path / "net.py").write_text(
        IMPORTS + "class make(nn.Module):\n    def forward(self, x):\n        import late_one\n"
        "        return x + late_one.value\n"
    )
    model = model_from_file(tmp_path / "net.py", "make")
    assert model(torch.zeros(1)).item() == 5
    assert sys.path[-1] == str(tmp_path)
    assert sys.path[0] != str(tmp_path)


def test_two_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    for name, width in (("a", 3), ("b", 4)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "net.py").write_text(IMPORTS + f"def make():\n    return nn.Linear(2, {width})\n")
    made = [model_from_file(tmp_path / name / "net.py", "make") for name in ("a", "b", "a")]
    assert [model.out_features for model in made] == [3, 4, 3]


def test_a_module_of_a_package_may_import_its_neighbours(tmp_path: Path) -> None:
    folder = tmp_path / "some_package" / "nets"
    folder.mkdir(parents=True)
    for place in (folder, folder.parent):
        (place / "__init__.py").touch()
    (folder / "blocks.py").write_text("from torch import nn\nBlock = nn.Linear\n")
    (folder / "net.py").write_text(
        "from .blocks import Block\nfrom .. import nets\ndef make():\n    return Block(2, 3)\n"
    )
    assert isinstance(model_from_file(folder / "net.py", "make"), nn.Linear)


BAD = {
    "import sys\nsys.exit(0)\n": r"cannot be run: it ended the program \(net\.py, line 2\)\. Put code .*__main__",
    "import sys\ndef make():\n    sys.exit()\n": r"make\(\) in .* failed: it ended the program \(net\.py, line 3\)",
    "import argparse\np = argparse.ArgumentParser()\np.add_argument('f')\np.parse_args()\n": "ended .*line 4",
    "quit()\n": "ended the program .*line 1",
    "x = 1 / 0\n": r"cannot be run: ZeroDivisionError: division by zero \(net\.py, line 1\)",
    "def make():\n    x = 1\n    return x.y\n": r"failed: AttributeError: .* \(net\.py, line 3\)",
    "import torch\ndef make():\n    return torch.nn.Linear(-1, 2)\n": r"failed: .* \(net\.py, line 3\)",
    "def make(:\n": r"cannot be run: SyntaxError: .* \(net\.py, line 1\)",
    "x = '\0'\n": "cannot be run: (SyntaxError|ValueError): ",
    "def make():\nreturn 3\n": "IndentationError: .*line 2",
    "raise KeyError\n": "cannot be run: KeyError: ",
    "raise RuntimeError('\\x1b[31mred\\nsecond line')\n": r"RuntimeError: \\x1b\[31mred \(net",
    "def make(width):\n    pass\n": r"make\(\) in .* needs the arguments width, and the command passes none",
    "def make(*, a, b=2, **c):\n    pass\n": "needs the arguments a, and",
    "class Net:\n    def make(self):\n        pass\n": r"has no function 'make'\. It has: Net",
    "def mak():\n    pass\ndef other():\n    pass\n": "has no function 'make'. Did you mean 'mak'",
    "from math import sqrt\n": r"has no function 'make'\.$",
    "make = {'model': 3}\n": "make in .* is a dict; expected a function without arguments",
    "def make():\n    pass\n": r"must return a torch\.nn\.Module, found None; does it lack a return",
    "def make():\n    return {}\n": r"must return a torch\.nn\.Module, found a dict",
    "import torch\ndef make():\n    return torch.nn.Linear\n": "must return a torch.nn.Module, found a type",
    "def make():\n    yield 3\n": "must return a torch.nn.Module, found a generator",
    "from resilient_heads.errors import DataError\nraise DataError('own words')\n": "own words",
    "import beside_it_that_is_absent\n": "ModuleNotFoundError: No module named 'beside_it_that_is_absent'",
    "import sys\ndel sys.modules[__name__]\n1 / 0\n": "ZeroDivisionError",
}


@pytest.mark.parametrize("source", BAD)
def test_what_is_wrong_with_a_file_is_said_with_its_line(tmp_path: Path, source: str) -> None:
    (tmp_path / "net.py").write_text(source)
    before = {name for name in sys.modules if "model_file" in name}
    with pytest.raises(Exception, match=BAD[source]) as error:
        model_from_file(tmp_path / "net.py", "make")
    assert isinstance(error.value, ModelError) or "own words" in source
    assert str(error.value).isprintable()
    if "cannot be run" in str(error.value):
        assert {name for name in sys.modules if "model_file" in name} == before


def test_an_interrupt_passes(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        model_from_file(tmp_path / "net.py", "make")


@pytest.mark.parametrize("place", ["sys.exit(0)", "def net():\n    sys.exit(0)", "LATE"])
def test_a_file_that_ends_the_program_never_ends_it_with_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    late = "from torch import nn\nclass net(nn.Module):\n    def forward(self, x):\n        sys.exit(0)\n"
    (tmp_path / "net.py").write_text("import sys\n" + (late if place == "LATE" else place))
    words = arguments(tmp_path / "c")
    words[2] = f"{tmp_path / 'net.py'}:net"
    assert main(words) == 1
    assert "ended the program" in capsys.readouterr().err
