import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from helpers.residual_net import ResidualNet
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


@pytest.fixture
def small_net() -> ResidualNet:
    return ResidualNet().train()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(24, 3, 6, 6)


@pytest.fixture
def labelled(small_net: ResidualNet, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return images and labels; the small net classifies all but every sixth image correctly."""
    small_net.eval()
    with torch.inference_mode():
        labels = small_net(images).argmax(dim=1)
    small_net.train()
    labels = labels.clone()
    labels[::6] = (labels[::6] + 1) % 5
    return images, labels
