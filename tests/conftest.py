import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from helpers.shared_data import FOLDER

if "PYTEST_XDIST_WORKER" in os.environ:  # processes that share the cores; children of a test inherit the setting
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests that need real data where there is none."""
    if item.get_closest_marker("shared_data") and not FOLDER.is_dir():
        pytest.skip(f"no real data at {FOLDER}; name its folder in RESILIENT_HEADS_DATA")


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Give every test the same random numbers, independent of the tests before it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


class SmallNet(nn.Module):
    """Two convolutions with a residual sum, batch normalisation and dropout, and a classifier."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv1(x)))
        x = torch.relu_(x + self.conv2(x))
        return self.fc(self.dropout(x.mean(dim=(2, 3))) * 5)


@pytest.fixture
def small_net() -> SmallNet:
    return SmallNet().train()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(24, 3, 6, 6)


@pytest.fixture
def labelled(small_net: SmallNet, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return images and labels; the small net classifies all but every sixth image correctly."""
    small_net.eval()
    with torch.inference_mode():
        labels = small_net(images).argmax(dim=1)
    small_net.train()
    labels = labels.clone()
    labels[::6] = (labels[::6] + 1) % 5
    return images, labels
