"""Faults and sites that cannot be, refused in words."""

import pytest
import torch
from torch import Tensor, nn

import resilient_heads as rh
from resilient_heads.errors import ArgumentError, FaultError, InjectionError
from resilient_heads.injection.apply.inject import inject
from resilient_heads.injection.faults.fault import BitFlip
from resilient_heads.injection.faults.ranges import clamp_to_range
from resilient_heads.injection.sites.find import find_sites


class BySize(nn.Module):
    """Runs a layer for batches of two only, and another one twice for three."""

    def __init__(self) -> None:
        super().__init__()
        self.even, self.twice, self.always = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.even(x) if len(x) == 2 else x
        x = self.twice(self.twice(x)) if len(x) == 3 else self.twice(x)
        return self.always(x)


class Mistyped(nn.Linear):
    fault_sites = ("latnt",)


class Total(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum()


def test_layers_that_depend_on_the_batch_are_skipped() -> None:
    sites = find_sites(BySize(), torch.randn(3, 4))
    assert [site.name for site in sites.reached] == ["always"]
    assert sites.uninjectable == {
        "even": "how often it runs depends on the size of the batch",
        "twice": "how often it runs depends on the size of the batch",
    }


def test_a_declared_site_that_does_not_exist_is_refused() -> None:
    with pytest.raises(FaultError, match="names 'latnt', which it does not have"):
        find_sites(nn.Sequential(Mistyped(3, 2)), torch.randn(2, 3))


def test_limits_beyond_the_format_and_below_zero() -> None:
    values = torch.tensor([float("inf"), -7.0], dtype=torch.float16)
    assert clamp_to_range(values, 1e5).tolist() == [65504.0, -7.0]
    for limit in (-1.0, float("nan")):
        with pytest.raises(ArgumentError, match="at least 0"):
            clamp_to_range(values, limit)


def test_outputs_without_rows_are_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 2), Total())
    flip = BitFlip(layer="1", neuron=(), bit=3)
    with pytest.raises(FaultError, match="without a batch dimension"), inject(model, flip):
        model(torch.randn(2, 3))
    with (
        pytest.raises(InjectionError, match="No fault was injected into '0'"),
        inject(model, BitFlip(layer="0", neuron=(1,), bit=3)),
    ):
        model(torch.randn(0, 3))


def test_thousands_of_faults_are_checked_at_once() -> None:
    model = nn.Sequential(nn.Linear(3, 4000))
    faults = [BitFlip(layer="0", neuron=(i,), bit=3) for i in range(4000)]
    with pytest.raises(FaultError, match="give this one once"), inject(model, [*faults, faults[7]]):
        pytest.fail("the body must not run")


def test_an_expanded_parameter_is_refused_and_left_alone() -> None:
    layer = nn.Linear(4, 3)
    layer.weight = nn.Parameter(torch.ones(1, 4).expand(3, 4))
    model = nn.Sequential(layer)
    fault = rh.WeightBitFlip(layer="0", index=(0, 1), bit=30)
    with pytest.raises(FaultError, match=r"is expanded: .*tensor\.clone"), rh.inject(model, fault):
        pass
    assert bool((layer.weight == 1).all())
