from collections.abc import Callable
from dataclasses import FrozenInstanceError

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from resilient_heads.errors import FaultError, ForwardError
from resilient_heads.injection.sites.find import find_sites
from resilient_heads.injection.sites.site import Site


def hooks(model: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
        for module in model.modules()
    )


class Backwards(nn.Module):
    """Runs its layers in another order than it declares them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 3)
        self.conv2 = nn.Conv2d(4, 2, 3)
        self.conv1 = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv2(self.norm(self.conv1(x))).flatten(1))


class TwoLinear(nn.Module):
    """Lets a test decide what happens to the second of two layers."""

    def __init__(self, use: Callable[["TwoLinear", Tensor], object]) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.use = use

    def forward(self, x: Tensor) -> object:
        return self.use(self, self.first(x))


class TupleLinear(nn.Linear):
    def forward(self, x: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return super().forward(x), None


class IntegerLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).long()


class Head(nn.Module):
    """Declares itself, a child and a submodule that is neither Conv2d nor Linear."""

    fault_sites = ("latent", "scale", "")

    def __init__(self) -> None:
        super().__init__()
        self.latent = nn.Linear(4, 6)
        self.scale = nn.Hardtanh()
        self.extra = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.extra(self.scale(self.latent(x))) * 2


def test_sites_come_in_the_order_of_execution() -> None:
    sites = find_sites(Backwards().eval(), torch.randn(4, 1, 6, 6))
    assert [site.name for site in sites.reached] == ["conv1", "conv2", "fc"]
    assert [site.kind for site in sites.reached] == ["Conv2d", "Conv2d", "Linear"]
    assert [site.shape for site in sites.reached] == [(4, 4, 4), (2, 2, 2), (3,)]
    assert [site.neurons for site in sites.reached] == [64, 8, 3]
    assert {site.dtype for site in sites.reached} == {torch.float32}
    assert {site.word_bits for site in sites.reached} == {32}
    assert {site.group for site in sites.reached} == {None}
    assert all(site.is_layer for site in sites.reached)
    assert sites.uninjectable == {}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_site_has_the_dtype_of_its_output(dtype: torch.dtype) -> None:
    (site,) = find_sites(nn.Sequential(nn.Linear(3, 2)).to(dtype), torch.ones(1, 3, dtype=dtype)).reached
    assert site.dtype == dtype
    assert site.word_bits == torch.finfo(dtype).bits


def test_autocast_decides_the_dtype() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (site,) = find_sites(nn.Sequential(nn.Linear(3, 2)), torch.ones(1, 3)).reached
    assert site.dtype == torch.bfloat16
    assert site.word_bits == 16


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_any_number_of_samples_will_do(rows: int) -> None:
    (site,) = find_sites(nn.Sequential(nn.Linear(3, 2)), torch.randn(rows, 3)).reached
    assert site == Site(module="0", kind="Linear", shape=(2,), dtype=torch.float32, group=None, is_layer=True)


SKIPPED = {
    "it never ran, and nothing multiplies with its weight": lambda self, x: x,
    "how often it runs depends on the size of the batch": lambda self, x: self.second(x) if len(x) == 2 else x,
    "no batch dimension": lambda self, x: x + self.second(x.mean(dim=0)),
    # As many rows as the first of the two batches has, or the second.
    "batch dimension": lambda self, x: self.second(x.sum().expand(2, 4)),
    "has no batch dimension": lambda self, x: self.second(x.sum().expand(3, 4)),
}


@pytest.mark.parametrize("reason", SKIPPED)
def test_a_layer_without_a_site_is_skipped_with_a_reason(reason: str) -> None:
    model = TwoLinear(SKIPPED[reason])
    sites = find_sites(model, torch.randn(4, 4))
    assert [site.name for site in sites.reached] == ["first"]
    assert list(sites.uninjectable) == ["second"]
    assert reason in sites.uninjectable["second"]
    with pytest.raises(FaultError, match=f"No fault can be injected into 'second': .*{reason}"):
        sites.named("second")
    assert hooks(model) == 0


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (TupleLinear(4, 4), "the model does not read this tensor"),
        (IntegerLinear(4, 4), "its output is torch.int64"),
        (nn.Flatten(0), "no batch dimension"),
    ],
)
def test_an_output_that_no_flip_can_strike(layer: nn.Module, reason: str) -> None:
    model = TwoLinear(lambda self, x: (self.second(x), x)[1])
    model.second = layer  # type: ignore[assignment]
    model.fault_sites = ("second",)  # type: ignore[assignment]
    sites = find_sites(model, torch.randn(4, 4))
    assert [site.name for site in sites.reached] == ["first"]
    assert reason in sites.uninjectable["second"]


def test_an_empty_output_is_no_site() -> None:
    model = TwoLinear(lambda self, x: (self.second(x[:, None, :][:, :0]), x)[1])
    assert find_sites(model, torch.randn(4, 4)).uninjectable == {"second": "its output is empty"}


FOLDED = {
    "windows of an image lie together": (lambda x: x.repeat_interleave(2, dim=0), False),
    "images take turns": (lambda x: torch.cat([x, x * 2]), True),
}


@pytest.mark.parametrize("kind", FOLDED)
def test_images_folded_into_rows(kind: str) -> None:
    fold, interleaved = FOLDED[kind]
    model = TwoLinear(lambda self, x: (self.second(fold(x)), x)[1])
    site = find_sites(model, torch.randn(4, 4)).named("second")
    assert (site.dim, site.fold, site.interleaved, site.shape) == (0, 2, interleaved, (2, 4))
    index = site.index(torch.arange(3), torch.tensor([0, 5, 7]), 3)
    expected = [[0, 4, 5], [0, 1, 3]] if interleaved else [[0, 3, 5], [0, 1, 3]]
    assert [part.tolist() for part in index] == expected


def test_images_whose_rows_are_shuffled_are_no_site() -> None:
    order = torch.tensor([0, 3, 1, 2, 5, 4])
    model = TwoLinear(lambda self, x: (self.second(torch.cat([x, x])[order[order < 2 * len(x)]]), x)[1])
    assert "which part of its output" in find_sites(model, torch.randn(4, 4)).uninjectable["second"]


def test_images_in_another_dimension() -> None:
    model = TwoLinear(lambda self, x: (self.second(x.expand(5, *x.shape)), x)[1])
    site = find_sites(model, torch.randn(4, 4)).named("second")
    assert (site.dim, site.fold, site.shape) == (1, 1, (5, 4))
    assert [part.tolist() for part in site.index(torch.tensor([2]), torch.tensor([7]), 3)] == [[1], [2], [3]]


def test_a_weight_that_is_used_without_running_its_module() -> None:
    model = TwoLinear(lambda self, x: F.linear(x, self.second.weight, self.second.bias))
    sites = find_sites(model, torch.randn(4, 4))
    assert [(site.name, site.source, site.shape) for site in sites.reached] == [
        ("first", "output", (4,)),
        ("second", "product", (4,)),
    ]
    assert sites.uninjectable == {}


class Attention(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=batch_first)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.attention.batch_first:
            return self.fc(self.attention(x, x, x, need_weights=False)[0])
        x = x.transpose(0, 1)
        return self.fc(self.attention(x, x, x, need_weights=False)[0]).transpose(0, 1)


@pytest.mark.parametrize("batch_first", [True, False])
def test_the_projections_of_an_attention_are_reached(batch_first: bool) -> None:
    model = Attention(batch_first).eval()
    sites = find_sites(model, torch.randn(2, 5, 4))
    assert [site.name for site in sites.reached] == ["attention", "attention.out_proj", "fc"]
    projection = sites.named("attention")
    assert (projection.source, projection.neurons, projection.is_layer) == ("product", 5 * 3 * 4, True)
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_module_that_runs_twice_has_two_sites() -> None:
    shared = nn.Linear(4, 4)
    sites = find_sites(nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(4, 2)), torch.randn(2, 4))
    assert [(site.name, site.module, site.call) for site in sites.reached] == [
        ("0", "0", 0),
        ("0@2", "0", 1),
        ("3", "3", 0),
    ]


def test_further_modules_on_request() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.LayerNorm(4), nn.Linear(4, 2))
    images = torch.randn(2, 4)
    assert [site.name for site in find_sites(model, images, modules=[nn.ReLU]).reached] == ["0", "1", "3"]
    assert [site.name for site in find_sites(model, images, modules=["[12]"]).reached] == ["0", "1", "2", "3"]
    with pytest.raises(FaultError, match="has no module 'block"):
        find_sites(model, images, modules=["block*"])


def test_patterns_of_names() -> None:
    sites = find_sites(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.randn(2, 4))
    assert [site.name for site in sites.matching(["*"])] == ["0", "1"]
    assert [site.name for site in sites.matching(["1"])] == ["1"]
    with pytest.raises(FaultError, match=r"No fault site is named 'fc\*'; .*: 0, 1"):
        sites.matching(["fc*"])


def test_declared_sites_form_a_group() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), Head())
    sites = find_sites(model, torch.randn(2, 5))
    assert [(site.name, site.group, site.is_layer) for site in sites.reached] == [
        ("0", None, True),
        ("2.latent", "2", True),
        ("2.scale", "2", False),
        ("2.extra", None, True),
        ("2", "2", False),
    ]
    assert sites.named("2.scale").kind == "Hardtanh"
    assert [site.name for site in sites.last] == ["2.latent", "2.scale", "2"]


def test_the_last_site_stands_alone_without_a_group() -> None:
    sites = find_sites(nn.Sequential(Head(), nn.Linear(3, 2)), torch.randn(2, 4))
    assert [site.name for site in sites.last] == ["1"]


def test_the_last_group_is_not_mixed_with_an_earlier_one() -> None:
    sites = find_sites(nn.Sequential(Head(), nn.Linear(3, 4), Head()), torch.randn(2, 4))
    assert [site.name for site in sites.reached if site.group == "0"] == ["0.latent", "0.scale", "0"]
    assert [site.name for site in sites.last] == ["2.latent", "2.scale", "2"]


def test_a_model_that_declares_its_own_children() -> None:
    sites = find_sites(Head(), torch.randn(2, 4))
    assert [(site.name, site.group) for site in sites.reached] == [("latent", ""), ("scale", ""), ("extra", None)]
    assert [site.name for site in sites.last] == ["extra"]


def test_an_unknown_name_lists_the_valid_ones() -> None:
    sites = find_sites(Backwards().eval(), torch.randn(2, 1, 6, 6))
    assert sites.named("conv2").shape == (2, 2, 2)
    for unknown in ("conv3", "", "norm"):
        with pytest.raises(FaultError, match=rf"No fault site is named '{unknown}'; .*: conv1, conv2, fc\."):
            sites.named(unknown)


def test_a_model_without_any_site() -> None:
    with pytest.raises(FaultError, match="Sequential has no fault site: it has no layer"):
        find_sites(nn.Sequential(nn.ReLU()), torch.randn(2, 4))


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training: bool) -> None:
    model = Backwards().train(training)
    model.conv2.train(not training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    find_sites(model, torch.randn(2, 1, 6, 6))
    assert hooks(model) == 0
    assert (model.training, model.norm.training, model.conv2.training) == (training, training, not training)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    model(torch.randn(2, 1, 6, 6)).sum().backward()
    assert model.conv1.weight.grad is not None


def test_sites_are_those_of_evaluation_mode() -> None:
    model = TwoLinear(lambda self, x: self.second(x) if self.training else x).train()
    assert "never ran" in find_sites(model, torch.randn(2, 4)).uninjectable["second"]


def test_no_input() -> None:
    with pytest.raises(FaultError, match="example_input is empty"):
        find_sites(Backwards(), torch.empty(0, 1, 6, 6))


def test_lazy_parameters() -> None:
    with pytest.raises(FaultError, match="lazy parameters without a size"):
        find_sites(nn.Sequential(nn.LazyLinear(3)), torch.randn(2, 4))


def test_hooks_are_gone_when_the_model_raises() -> None:
    def fail(_model: nn.Module, _x: Tensor) -> Tensor:
        raise RuntimeError("broken model")

    model = TwoLinear(fail)
    with pytest.raises(ForwardError, match="broken model"):
        find_sites(model.train(), torch.randn(2, 4))
    assert hooks(model) == 0
    assert model.training


def test_hooks_of_the_caller_stay() -> None:
    model, seen = Backwards().eval(), []
    model.fc.register_forward_hook(lambda *_: seen.append(1))
    find_sites(model, torch.randn(2, 1, 6, 6))
    assert len(seen) == 3
    assert hooks(model) == 1


def test_a_site_is_a_frozen_value() -> None:
    (site,) = find_sites(nn.Sequential(nn.Linear(3, 2)), torch.randn(1, 3)).reached
    with pytest.raises(FrozenInstanceError):
        site.module = "other"  # type: ignore[misc]
    assert len({site, site}) == 1
