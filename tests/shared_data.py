"""Real images and weights that are not part of the repository; see the marker ``shared_data``."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

FOLDER = Path(os.environ.get("RESILIENT_HEADS_DATA", Path(__file__).parents[2] / "shared" / "data"))

needs_shared_data = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"no real data at {FOLDER}; name its folder in RESILIENT_HEADS_DATA"
)


class Block(nn.Module):
    """Two convolutions and a shortcut that pads channels with zeros (He et al., option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            channels = out.shape[1] // 4
            x = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, channels, channels))
        return torch.relu(out + x)


class ResNet20(nn.Module):
    """The CIFAR-10 ResNet with 20 layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16, 1), Block(16, 16, 1), Block(16, 16, 1))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def pretrained_resnet20() -> ResNet20:
    path = FOLDER / "weights" / "resnet20-12fca82f.th"
    state = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    model = ResNet20()
    model.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state.items()})
    return model.eval()


def cifar10(count: int, *, split: str = "test_jpeg") -> tuple[Tensor, Tensor]:
    """Return ``count`` images, evenly spaced over the file, normalised for :func:`pretrained_resnet20`."""
    from PIL import Image

    content = np.load(FOLDER / "cifar10" / f"cifar10_{split}.npz")
    blob, offsets, labels = content["jpeg"], content["offsets"], content["labels"]
    chosen = np.linspace(0, len(labels) - 1, count).astype(int)
    pixels = [np.asarray(Image.open(io.BytesIO(blob[offsets[i] : offsets[i + 1]].tobytes()))) for i in chosen]
    images = torch.tensor(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (images - mean[:, None, None]) / std[:, None, None], torch.tensor(labels[chosen]).long()
