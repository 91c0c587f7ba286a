"""The code in README and docs runs as it stands, on a few small images."""

import re
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import resilient_heads as rh
from resilient_heads.text.encoders.precomputed import PrecomputedEncoder

ROOT = Path(__file__).parent.parent
torchvision = pytest.importorskip("torchvision")


def blocks(path: Path) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL))


@pytest.fixture
def namespace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, object]:
    """Return what a reader has at hand: data, a trained model, its campaign, an encoder on this machine."""
    monkeypatch.chdir(tmp_path)
    images = torch.randn(8, 3, 32, 32)
    model = torchvision.models.resnet18(num_classes=10).eval()
    labels = model(images).argmax(dim=1)
    loader = DataLoader(TensorDataset(images, labels), batch_size=4)
    campaign, neyman_design = rh.run_campaign, rh.neyman_design

    def few(model: torch.nn.Module, data: object, **options: object) -> rh.CampaignResult:
        return campaign(model, data, **{**options, "trials_per_site": 3, "progress": False})

    def cheap(pilot: rh.CampaignResult, *, trials: int) -> rh.StratifiedDesign:
        return neyman_design(pilot, total_trials=trials // 40)

    def train(wrapped: torch.nn.Module) -> None:
        """Overfit, so that some image is classified correctly."""
        optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-3)
        for _ in range(8):
            torch.nn.functional.cross_entropy(wrapped.train()(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()

    result = campaign(model, loader, calibration=loader, trials_per_site=3, progress=False)
    result.save("campaign.parquet")
    monkeypatch.setattr(rh, "run_campaign", few, raising=False)
    monkeypatch.setattr(rh, "neyman_design", cheap, raising=False)
    generator = torch.Generator().manual_seed(0)

    class Encoder(PrecomputedEncoder):
        def __init__(self) -> None:
            super().__init__({"": torch.zeros(16)}, id="random")

        def encode(self, sentences: list[str]) -> torch.Tensor:
            return torch.randn(len(sentences), 16, generator=generator)

    monkeypatch.setattr("resilient_heads.heads.text_guided.OpenClipEncoder", Encoder)
    return {
        "rh": rh,
        "model": model,
        "torchvision": torchvision,
        "train": train,
        "images": images,
        "train_loader": loader,
        "val_loader": loader,
        "plain_result": result,
        "baseline": result,
        "candidate": result,
    }


PAGES = [
    "README.md",
    "docs/index.md",
    "docs/faults.md",
    "docs/heads.md",
    "docs/protection.md",
    "docs/measuring.md",
    "docs/campaigns.md",
    "docs/statistics.md",
]


@pytest.mark.parametrize("page", PAGES)
def test_code_runs(page: str, namespace: dict[str, object]) -> None:
    code = blocks(ROOT / page)
    assert "rh." in code
    if page == "docs/index.md":  # two classes there: one image of each, so that something is classified correctly
        images = torch.randn(6, 3, 32, 32)
        both = torch.tensor([0, 1, 0, 1, 0, 1])
        namespace["images"] = images
        namespace["val_loader"] = namespace["train_loader"] = [(images, both)]
    exec(compile(code, page, "exec"), namespace)


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+?)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_named_file_exists() -> None:
    """Docs and README name tests and scripts as proof; they must be there."""
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"`(?:python )?((?:tests|examples)/[\w/.]+\.py)`", page.read_text()):
            assert (ROOT / target).exists(), f"{page.name}: {target}"
