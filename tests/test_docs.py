"""README, docs, examples and docstrings: their code runs, and what they name exists."""

import ast
import copy
import inspect
import re
import shlex
import typing
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import resilient_heads as rh
from helpers.public_face import NAMESPACES, public_objects
from resilient_heads import demo
from resilient_heads.cli import build_parser
from resilient_heads.text.encoders.precomputed import PrecomputedEncoder

torchvision = pytest.importorskip("torchvision")
ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
PROSE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PACKAGE = "src/resilient_heads"
PUBLIC_MODULES = {"resilient_heads", "resilient_heads.demo", *(f"resilient_heads.{name}" for name in NAMESPACES)}
COMPLETE_SCRIPTS = ("README.md", "index.md", "campaigns.md")  # a reader pastes them into an empty file
RUN_ELSEWHERE = {
    "embeddings.md": "tests/text/test_embeddings_page.py",
    "training.md": "tests/deployment/test_pages.py",
    "deployment.md": "tests/deployment/test_pages.py",
}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, language: str) -> list[str]:
    """Return the blocks of code in a page."""
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), flags=re.DOTALL)


def code(path: Path) -> str:
    """Return the Python of a page or a script as one program."""
    return path.read_text() if path.suffix == ".py" else "\n".join(blocks(path, "python"))


@dataclass(frozen=True)
class Prepared:
    """What the pages that are no complete scripts take for granted: a model that is right, its data, its campaign."""

    model: torch.nn.Module
    images: torch.Tensor
    labels: torch.Tensor
    loader: DataLoader[tuple[torch.Tensor, ...]]
    result: rh.CampaignResult


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        images = torch.randn(8, 3, 32, 32)
        model = torchvision.models.resnet18(num_classes=10).eval()
    labels = model(images).argmax(dim=1)
    loader = DataLoader(TensorDataset(images, labels), batch_size=4)
    result = rh.run_campaign(model, loader, calibration=loader, trials_per_site=3, progress=False)
    return Prepared(model, images, labels, loader, result)


@pytest.fixture
def namespace(prepared: Prepared) -> dict[str, object]:
    """Return the names that pages use without defining them."""

    def train(wrapped: torch.nn.Module) -> None:
        """Overfit, so that some image is classified correctly."""
        optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-3)
        for _ in range(8):
            torch.nn.functional.cross_entropy(wrapped.train()(prepared.images), prepared.labels).backward()
            optimizer.step()
            optimizer.zero_grad()

    return {
        "rh": rh,
        "torchvision": torchvision,
        "model": copy.deepcopy(prepared.model),
        "images": prepared.images,
        "train": train,
        **dict.fromkeys(("train_loader", "val_loader"), prepared.loader),
        **dict.fromkeys(("plain_result", "baseline", "candidate"), prepared.result),
    }


@pytest.fixture
def _small(prepared: Prepared, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let campaigns run few trials, data sets hold few images, and the default encoder need no download."""
    run_campaign, neyman_design, digits = rh.run_campaign, rh.neyman_design, demo.digits

    def few_trials(
        model: torch.nn.Module, data: object, config: rh.CampaignConfig | None = None, **options: object
    ) -> rh.CampaignResult:
        trials = {} if config is not None or "design" in options else {"trials_per_site": 3}
        return run_campaign(model, data, config, **{**options, **trials, "progress": False})

    def small_design(pilot: rh.CampaignResult, *, total_trials: int) -> rh.StratifiedDesign:
        return neyman_design(pilot, total_trials=total_trials // 40)

    def few_digits(seed: int) -> tuple[TensorDataset, TensorDataset]:
        train_set, test_set = digits(seed)
        return TensorDataset(*train_set[:192]), TensorDataset(*test_set[:64])

    class RandomEncoder(PrecomputedEncoder):
        def __init__(self) -> None:
            super().__init__({"": torch.zeros(16)}, id="random")

        def encode(self, sentences: list[str]) -> torch.Tensor:
            return torch.randn(len(sentences), 16)

    monkeypatch.chdir(tmp_path)
    prepared.result.save("campaign")
    torch.save({"state_dict": prepared.model.state_dict()}, "last.ckpt")
    monkeypatch.setattr(rh, "run_campaign", few_trials, raising=False)
    monkeypatch.setattr(rh, "neyman_design", small_design, raising=False)
    monkeypatch.setattr(demo, "digits", few_digits)
    monkeypatch.setattr("resilient_heads.heads.text_guided.OpenClipEncoder", RandomEncoder)


RUN_HERE = [path for path in PROSE if code(path) and path.name not in RUN_ELSEWHERE]


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("page", RUN_HERE, ids=named)
def test_the_code_of_a_page_runs(page: Path, namespace: dict[str, object]) -> None:
    exec(compile(code(page), page.name, "exec"), {} if page.name in COMPLETE_SCRIPTS else namespace)


def test_every_page_with_code_runs_in_some_test() -> None:
    assert {"README.md", "index.md"} <= {path.name for path in RUN_HERE}
    for page, test in RUN_ELSEWHERE.items():
        assert page in (ROOT / test).read_text(), f"{test} no longer runs docs/{page}"


@pytest.mark.parametrize("page", PROSE, ids=named)
def test_commands_in_a_page_are_accepted_by_the_command_line(page: Path) -> None:
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for command in re.split(r"&&|\|", line.partition("#")[0]):
                words = shlex.split(command)
                if "resilient-heads" in words:
                    build_parser().parse_args(words[words.index("resilient-heads") + 1 :])


@pytest.mark.parametrize("page", PROSE, ids=named)
def test_links_and_named_files_exist(page: Path) -> None:
    text = page.read_text()
    links = [target for target in re.findall(r"\]\(([^)#]+?)\)", text) if not target.startswith("http")]
    assert [target for target in links if not (page.parent / target).exists()] == []
    files = re.findall(r"`(?:python )?((?:tests|examples|benchmarks|src|docs)/[\w/.]+\.\w+)", text)
    assert [target for target in files if not (ROOT / target).exists()] == []


def test_design_says_where_lines_go_and_names_files_that_exist() -> None:
    section = (ROOT / "docs/design.md").read_text().partition("## Where does a new line go?")[2].partition("\n## ")[0]
    rows = [row for row in section.splitlines() if row.startswith("| ")][1:]
    assert len(rows) >= 8
    for row in rows:
        files = re.findall(r"`((?:\w+/)+(?:\w+\.\w+)?|\w+\.pyi?)`", row)
        assert files, row
        assert [file for file in files if not any((ROOT / folder / file).exists() for folder in (PACKAGE, "."))] == []


@pytest.mark.parametrize("page", [*PROSE, *EXAMPLES], ids=named)
def test_public_names_in_a_page_exist(page: Path) -> None:
    for dotted in set(re.findall(r"\brh\.([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)", page.read_text())):
        owner: object = rh
        for name in dotted.split("."):
            if not (inspect.ismodule(owner) or inspect.isclass(owner)):
                break
            if inspect.isclass(owner) and name in getattr(owner, "__annotations__", {}):
                break
            assert name in owner.__all__ if inspect.ismodule(owner) else hasattr(owner, name), f"rh.{dotted}"
            owner = getattr(owner, name)


OBJECTS = {
    "result": rh.CampaignResult,
    "summary": rh.campaign.Summary,
    "comparison": rh.campaign.Comparison,
    "improvement": rh.campaign.Improvement,
    "layer": rh.campaign.SiteSummary,
    "bit": rh.campaign.BitSummary,
}
"""What pages mean by these words in code."""


@pytest.mark.parametrize("page", PROSE, ids=named)
def test_attributes_that_a_page_names_exist(page: Path) -> None:
    """Scopes and the like, also those that only the prose names: `summary.last_all.fit`."""
    words = "|".join(OBJECTS)
    for word, dotted in set(re.findall(rf"(?<![\w./])({words})((?:\.[a-z_]\w*)+)(?!\w*\.\w)", page.read_text())):
        owner: object = OBJECTS[word]
        for name in dotted.strip(".").split("."):
            if dotted.endswith((".md", ".json", ".parquet", ".py")):
                break
            known = hasattr(owner, name) or name in getattr(owner, "__annotations__", {})
            assert known, f"{word}{dotted}: {owner} has no {name}"
            kind = getattr(getattr(owner, name, None), "fget", None)
            hint = typing.get_type_hints(kind)["return"] if kind else typing.get_type_hints(owner).get(name)
            if not inspect.isclass(hint) or not hint.__module__.startswith("resilient_heads"):
                break
            owner = hint


def test_scopes_that_the_pages_name_are_attributes_of_a_summary() -> None:
    assert all(hasattr(rh.campaign.Summary, name) for name in ("last", "last_all", "network", "network_all"))


@pytest.mark.parametrize("page", [*PROSE, *EXAMPLES], ids=named)
def test_code_for_readers_imports_public_modules_only(page: Path) -> None:
    used = set()
    for part in ast.walk(ast.parse(code(page))):
        if isinstance(part, ast.Import):
            used |= {alias.name for alias in part.names}
        elif isinstance(part, ast.ImportFrom):
            used.add(part.module or "")
    assert {name for name in used if name.split(".")[0] == "resilient_heads"} <= PUBLIC_MODULES


@pytest.mark.parametrize("page", [page for page in PROSE if page.name not in ("api.md", "design.md")], ids=named)
def test_pages_name_no_private_path(page: Path) -> None:
    dotted = re.findall(r"(?<!-m )\bresilient_heads\.(\w+)\.(\w+)", page.read_text())
    assert [
        f"{space}.{name}" for space, name in dotted if name not in getattr(getattr(rh, space, None), "__all__", ())
    ] == []


def test_public_docstrings_hold_examples() -> None:
    """Pytest runs the examples in src, except those that need the files of a campaign. What calls return needs none."""
    typed_by_readers = {
        name: value.__doc__ or ""
        for name, value in public_objects().items()
        if callable(value) and re.fullmatch(r"rh\.((faults|formats|statistics)\.)?\w+", name)
    }
    missing = {name for name, text in typed_by_readers.items() if not re.search(r">>>|code-block:: python", text)}
    assert missing <= {"rh.faults.InjectionReport", "rh.formats.NumberFormat"}
