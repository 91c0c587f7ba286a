"""A small network with places where a test can put its own code."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import resilient_heads as rh

Code = Callable[[Tensor], Any]


class SmallNet(nn.Module):
    """Two convolutions and a classifier of five classes; the layers are called conv1, bn, conv2 and fc.

    Args:
        middle: Runs on the output of the first convolution.
        end: Runs on the logits.
    """

    def __init__(self, middle: Code | None = None, end: Code | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
            self.bn = nn.BatchNorm2d(4)
            self.conv2 = nn.Conv2d(4, 8, 3, stride=2)
            self.fc = nn.Linear(8, 5)
        self.middle = middle
        self.end = end
        self.eval()

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.bn(self.conv1(x)))
        x = x if self.middle is None else self.middle(x)
        logits = self.fc(torch.relu(self.conv2(x)).mean((2, 3)))
        return logits if self.end is None else self.end(logits)


IMAGES = torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(1))
with torch.no_grad():
    LABELS = SmallNet()(IMAGES).argmax(dim=1)


def small_campaign(model: Any, data: Any = (IMAGES, LABELS), **options: Any) -> rh.CampaignResult:
    settings = {"protocol": "raw", "trials_per_site": 32, "batch_size": 8, "progress": False, **options}
    return rh.run_campaign(model, data, **settings)


def require_same_trials(model: nn.Module, **options: Any) -> rh.CampaignResult:
    """Run a campaign on a wrapped SmallNet, and require the trials of the plain one."""
    result, expected = small_campaign(model, **options), small_campaign(SmallNet(), **options)
    for name, column in expected.trials.columns.items():
        assert result.trials.columns[name].tobytes() == column.tobytes(), name
    return result
