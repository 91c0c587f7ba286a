"""Campaigns whose trials are the same on every CPU: a network in which every sum is exact or rounded once.

Each weight is 0 or a power of two and each output sums at most two products, so no order of summation changes a bit.
"""

import torch
from torch import Tensor, nn

import resilient_heads as rh


def network() -> nn.Sequential:
    """Return a 1x1 convolution and a linear layer with two products in each output."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5, bias=False))
    convolution, linear = torch.zeros(4, 3), torch.zeros(5, 36)
    for row, (first, second) in enumerate([(0, 1), (1, 2), (2, 0), (0, 2)]):
        convolution[row, first], convolution[row, second] = 1.0, (-1.0, 2.0, 0.5, -2.0)[row]
    for row in range(5):
        linear[row, 7 * row + 1], linear[row, (11 * row + 4) % 36] = 1.0, (0.5, 2.0, 1.0, -1.0, 0.25)[row]
    with torch.no_grad():
        model[0].weight.copy_(convolution[..., None, None])
        model[3].weight.copy_(linear)
    return model.eval()


def images() -> tuple[Tensor, Tensor]:
    """Return 20 images of small whole numbers with the classes that the network predicts."""
    pixels = torch.arange(20 * 27, dtype=torch.float32).reshape(20, 3, 3, 3)
    pixels = (pixels * 37 + pixels.div(5, rounding_mode="floor") * 11) % 17 - 4
    with torch.no_grad():
        return pixels, network()(pixels).argmax(dim=1)


def designs() -> dict[str, rh.StratifiedDesign]:
    """Return designs with strata of every kind."""
    counts = {"0": (9, *[4] * 13), "3": (9, *[3] * 13)}
    by_value = {"counts": counts, "scales": {"0": 8.0, "3": 16.0}, "pilot_seed": 99}
    return {
        "layers alone": rh.StratifiedDesign(total_trials=80, by=()),
        "bits": rh.StratifiedDesign(total_trials=160, by=("bit",), image_groups=2),
        "roles": rh.StratifiedDesign(total_trials=80, by=("role",), weighting="bit_weighted"),
        "magnitudes and channels": rh.StratifiedDesign(total_trials=160, by=("magnitude", "channel")),
        "perturbations": rh.StratifiedDesign(total_trials=109, by=("perturbation",), **by_value),
        "fragile images": rh.StratifiedDesign(total_trials=109, by=("perturbation",), fragile_images=True, **by_value),
    }


def faults() -> dict[str, rh.FaultModel]:
    """Return fault models of every kind of element, effect and format."""
    return {
        "error rate": rh.FaultModel(elements=rh.faults.ErrorRate(rate=2e-2)),
        "adjacent elements": rh.FaultModel(elements=rh.faults.RandomElements(count=3, adjacent=True)),
        "burst": rh.FaultModel(effect=rh.faults.Flip(count=3, adjacent=True)),
        "stuck bit": rh.FaultModel(effect=rh.faults.StuckAt(value=1)),
        "stuck elements": rh.FaultModel(
            elements=rh.faults.AllElements(fixed=True), effect=rh.faults.StuckAt(value=0, bits=(23, 30))
        ),
        "random word": rh.FaultModel(effect=rh.faults.RandomWord()),
        "random value": rh.FaultModel(effect=rh.faults.RandomValue(low=-3.0, high=3.0)),
        "set value": rh.FaultModel(effect=rh.faults.SetValue(value=2.0)),
        "negate": rh.FaultModel(effect=rh.faults.Negate()),
        "layer maximum": rh.FaultModel(effect=rh.faults.LayerMaximum()),
        "fixed point": rh.FaultModel(format=rh.formats.FixedPoint(integer_bits=6, fraction_bits=4)),
        "block float": rh.FaultModel(format=rh.formats.BlockFloat(block_size=4), shared=True),
    }


def choices() -> dict[str, dict[str, object]]:
    """Return the choices of each campaign."""
    zero = rh.Protocol(name="zero", range_detector="zero")
    campaigns: dict[str, dict[str, object]] = {
        "goldeneye": {"protocol": "goldeneye", "trials_per_site": 60},
        "raw": {"protocol": "raw", "trials_per_site": 60, "seed": 3},
        "zero": {"protocol": zero, "trials_per_site": 60},
    }
    campaigns |= {name: {"protocol": "goldeneye", "design": design} for name, design in designs().items()}
    campaigns |= {name: {"protocol": "raw", "fault": fault, "trials_per_site": 20} for name, fault in faults().items()}
    return campaigns
