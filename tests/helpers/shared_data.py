"""Real images and weights that are not part of the repository; see the marker ``shared_data``."""

import io
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from helpers.scripts import load_script

FOLDER = Path(os.environ.get("RESILIENT_HEADS_DATA", Path(__file__).parents[3] / "shared" / "data"))


def pretrained_resnet20() -> nn.Module:
    path = FOLDER / "weights" / "resnet20-12fca82f.th"
    state = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    model = load_script("benchmarks/resnet20.py").ResNet20()
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
