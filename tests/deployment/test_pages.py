"""Every block of docs/training.md and docs/deployment.md runs, after its page's first block."""

import functools
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("torchvision")
DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"```python\n(.*?)```", flags=re.DOTALL)


def sections() -> Iterator[tuple[str, str, str]]:
    """Yield each page, heading and code, the page's first block before it."""
    for page in ("training.md", "deployment.md"):
        start, *others = re.split(r"^## ", (DOCS / page).read_text(), flags=re.MULTILINE)
        (first,) = BLOCK.findall(start)
        for section in others:
            for code in BLOCK.findall(section):
                yield page, section.partition("\n")[0], f"{first}\n{code}"


FOUND = list(sections())


@pytest.fixture(autouse=True)
def _in_one_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Set the environment of torchrun with one process; compile with the fast eager backend."""
    monkeypatch.chdir(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("page", "heading", "code"), FOUND, ids=[f"{page}: {head}" for page, head, _ in FOUND])
def test_the_code_of_a_section_runs(page: str, heading: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in sorted(set(re.findall(r"^(?:import|from) (\w+)", code, flags=re.MULTILINE))):
        pytest.importorskip(package, reason=f"{package} is not installed")
    if heading == "ONNX":
        pytest.importorskip("onnxscript", reason='needs the extra "onnx"')
    if heading in ("accelerate", "Lightning"):
        for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.delenv(name)
    data = TensorDataset(torch.randn(4, 3, 32, 32), torch.arange(4))
    namespace = {"train_loader": DataLoader(data, batch_size=2)}
    exec(compile(code, f"{page}: {heading}", "exec"), namespace)


def test_both_pages_have_sections_with_code() -> None:
    assert len(FOUND) >= 15
    assert {page for page, _, _ in FOUND} == {"training.md", "deployment.md"}
