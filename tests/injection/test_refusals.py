"""Faults and sites that cannot be, refused in words."""

import numpy as np
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


NOT_ARGUMENTS = {
    'layer must be a str, such as "layer4.0.conv1"; found 3': lambda: rh.Fault(layer=3),  # type: ignore[arg-type]
    "elements must be such as RandomElements": lambda: rh.Fault(layer="fc", elements=3),  # type: ignore[arg-type]
    'adjacent must be True or False, found "yes"': lambda: rh.faults.RandomElements(adjacent="yes"),  # type: ignore[arg-type]
    "adjacent must be True or False, found 1": lambda: rh.faults.Flip(adjacent=1),  # type: ignore[arg-type]
    "fixed must be True or False, found None": lambda: rh.faults.AllElements(fixed=None),  # type: ignore[arg-type]
    'shared must be True or False, found "x"': lambda: rh.Fault(layer="fc", shared="x"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("message", NOT_ARGUMENTS)
def test_arguments_of_a_wrong_kind(message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        NOT_ARGUMENTS[message]()


def test_models_and_formats_of_a_wrong_kind() -> None:
    with pytest.raises(ArgumentError, match=r'model must be a Module, such as .*; found "fc"'):
        rh.inject("fc", rh.Fault(layer="fc")).__enter__()  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"number_format must be one of resilient_heads\.formats, found 8"):
        rh.emulate(nn.Linear(2, 2), 8).__enter__()  # type: ignore[arg-type]


def test_booleans_of_numpy_become_plain_ones() -> None:
    elements = rh.faults.RandomElements(adjacent=np.bool_(True), fixed=np.bool_(False))  # type: ignore[arg-type]
    assert elements.adjacent is True
    assert elements.fixed is False


def test_an_unknown_layer_names_the_nearest_ones() -> None:
    model = nn.ModuleDict({f"block{i}": nn.ModuleDict({"conv": nn.Conv2d(1, 1, 1)}) for i in range(40)})
    with pytest.raises(FaultError) as found:
        rh.inject(model, rh.Fault(layer="block7.convv")).__enter__()
    text = str(found.value)
    assert "ModuleDict has no layer named 'block7.convv'; of its 40 layers, the nearest names are: block7.conv" in text
    assert len(text) < 250
    with pytest.raises(FaultError, match="its 40 layers are named such as block0"):
        rh.inject(model, rh.Fault(layer="xyz")).__enter__()


def test_a_name_of_a_namespace_says_where_it_is() -> None:
    with pytest.raises(AttributeError, match=r"did you mean resilient_heads\.faults\.StuckAt\?"):
        rh.StuckAt  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(AttributeError, match=r"did you mean resilient_heads\.formats\.FixedPoint\?"):
        rh.FixedPoint  # type: ignore[attr-defined]  # noqa: B018
    assert not hasattr(rh, "nonsense")


def test_error_rates_at_a_site_of_one_byte_floats() -> None:
    class Narrow(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.to(torch.float8_e4m3fn)

    class Wide(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.float()

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 4), Narrow(), Wide(), nn.Linear(4, 3)).eval(), torch.randn(16, 4)
    result = rh.run_campaign(
        model,
        (x, model(x).argmax(dim=1)),
        protocol="raw",
        modules=["1"],
        layers=["1"],
        fault=rh.FaultModel(elements=rh.faults.ErrorRate(rate=0.02)),
        trials_per_site=32,
        batch_size=8,
        progress=False,
    )
    none = result.trials.neuron == -1
    assert 0 < none.sum() < 32
    assert np.isnan(result.trials.before[none]).all()
    assert np.isfinite(result.trials.before[~none]).all()
