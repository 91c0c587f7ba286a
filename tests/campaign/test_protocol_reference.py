"""The published campaign, recomputed by a simple loop that shares no code with the library."""

import math
import struct

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import resilient_heads as rh


def flip(value: float, bit: int) -> float:
    (word,) = struct.unpack("<I", struct.pack("<f", value))
    (flipped,) = struct.unpack("<f", struct.pack("<I", word ^ (1 << bit)))
    return flipped


def detector(value: float, limit: float) -> float:
    if math.isnan(value):
        return limit
    return math.copysign(limit, value) if abs(value) > limit else value


def cross_entropy(logits: np.ndarray, label: int) -> float:
    highest = max(logits)
    return highest + math.log(sum(math.exp(x - highest) for x in logits)) - logits[label]


@pytest.fixture
def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4)
    ).eval()


@pytest.fixture
def data(net: nn.Sequential) -> tuple[Tensor, Tensor]:
    images = torch.randn(16, 1, 6, 6)
    return images, net(images).argmax(dim=1)


@pytest.mark.parametrize("position", [0, 3, 5])
@pytest.mark.parametrize("clamped", [True, False])
def test_equals_a_plain_loop(net: nn.Sequential, data: tuple[Tensor, Tensor], position: int, clamped: bool) -> None:
    images, labels = data
    training = torch.randn(40, 1, 6, 6)
    layer = str(position)
    result = rh.run_campaign(
        net,
        data,
        protocol="goldeneye" if clamped else "raw",
        trials_per_site=200,
        layers=[layer],
        calibration=training if clamped else None,
        batch_size=50,
        progress=False,
    )
    trials = result.trials
    with torch.inference_mode():
        limit = float(net[: position + 1](training).abs().max())
    losses, mismatches, dues = [], 0, 0
    for i in range(200):
        first = i - i % 50
        batch = images[torch.from_numpy(trials.image[first : first + 50])]
        with torch.inference_mode():
            site = net[: position + 1](batch).clone()
            golden = net[position + 1 :](site)[i % 50].double().numpy()
            neurons = site[i % 50].reshape(-1)
            value = flip(float(neurons[trials.neuron[i]]), int(trials.bit[i]))
            neurons[trials.neuron[i]] = detector(value, limit) if clamped else value
            faulty = net[position + 1 :](site)[i % 50].double().numpy()
        label = int(labels[trials.image[i]])
        if not np.isfinite(faulty).all():
            dues += 1
            assert trials.outcome[i] == 3
            continue
        loss = abs(cross_entropy(faulty, label) - cross_entropy(golden, label))
        assert trials.delta_loss[i] == pytest.approx(loss, rel=1e-9, abs=1e-12)
        losses.append(loss)
        changed = int(faulty.argmax()) != int(golden.argmax())
        mismatches += changed
        expected = 0 if (faulty == golden).all() else 2 if changed else 1
        assert trials.outcome[i] == expected
    figures = result.by_layer()[0].figures
    assert figures.sdc.value == pytest.approx(mismatches / 200)
    assert figures.due.value == pytest.approx(dues / 200)
    assert mismatches > 0
    if clamped:
        assert result.sites[0].range_limit == limit
        assert figures.delta_loss.value == pytest.approx(np.mean(losses))


def test_only_correct_images_are_struck(net: nn.Sequential, data: tuple[Tensor, Tensor]) -> None:
    images, labels = data
    wrong = labels.clone()
    wrong[:10] = (wrong[:10] + 1) % 4
    result = rh.run_campaign(net, (images, wrong), protocol="raw", trials_per_site=100, progress=False)
    assert set(np.unique(result.trials.image)) <= set(range(10, 16))
    assert result.summary().eligible_images == 6
    assert result.summary().accuracy.value == pytest.approx(6 / 16)
