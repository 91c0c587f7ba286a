"""How much of a model its fault sites cover: shares that are worked out by hand, and models that hide operators."""

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from resilient_heads.injection.sites.counting import Count
from resilient_heads.injection.sites.coverage import Coverage, Uncovered, percent
from resilient_heads.injection.sites.find import find_sites


class Classifier(nn.Module):
    """A backbone that a test chooses, the mean over pixels, and a linear layer."""

    def __init__(self, backbone: nn.Module, channels: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.fc = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.backbone(x).flatten(2).mean(dim=2))


class Functional(nn.Module):
    """Multiplies with parameters that belong to no layer."""

    def __init__(self, use: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(x, self.weight)


class Transformer(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.block = attention
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.patches(x).flatten(2).transpose(1, 2)).mean(dim=1))


def coverage(model: nn.Module, *shape: int) -> Coverage:
    return find_sites(model.eval(), torch.randn(shape)).coverage


def stack() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1))


FC = 16 * 5
STACK = 64 * (3 * 9 * 8 + 8 * 9 * 16)
"""Multiply-accumulates of the layer ``fc``, and of ``stack`` on 8 x 8 pixels."""

HIDDEN: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "scripted": (lambda: torch.jit.script(stack()), "backbone", "TorchScript"),
    "traced": (lambda: torch.jit.trace(stack(), torch.randn(2, 3, 8, 8)), "backbone", "TorchScript"),
}


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("kind", HIDDEN)
def test_a_backbone_without_hooks_is_named(kind: str) -> None:
    make, name, module_kind = HIDDEN[kind]
    found = coverage(Classifier(make(), 16), 2, 3, 8, 8)
    assert found.macs == pytest.approx(FC / (FC + STACK), rel=1e-12)
    assert found.macs < 0.001
    assert found.is_partial
    assert found.part == "of the covered part: 0.0913 % of multiply-accumulates"
    (largest,) = [one for one in found.uncovered if one.macs]
    assert (largest.module, largest.kind) == (name, module_kind)
    assert largest.macs == pytest.approx(STACK / (FC + STACK))
    assert "convolution in 'backbone' (TorchScript, 99.9 % of multiply-accumulates)" in str(found)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_script_module_is_no_site_and_says_so() -> None:
    sites = find_sites(Classifier(torch.jit.script(stack()), 16), torch.randn(2, 3, 8, 8), modules=["backbone"])
    assert [site.name for site in sites.reached] == ["fc"]
    assert sites.uninjectable == {"backbone": "it is TorchScript, which runs past hooks"}


WHOLE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolutions": (lambda: Classifier(stack(), 16), (2, 3, 8, 8)),
    "grouped and depthwise": (
        lambda: Classifier(nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 8, 3, groups=8)), 8),
        (2, 4, 8, 8),
    ),
    "padding by copying": (lambda: Classifier(nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"), 8), (2, 3, 8, 8)),
    "one dimension": (lambda: Classifier(nn.Sequential(nn.Conv1d(3, 8, 5), nn.ReLU()), 8), (2, 3, 32)),
    "three dimensions": (lambda: Classifier(nn.Conv3d(3, 8, 3), 8), (2, 3, 4, 5, 6)),
    "transposed": (
        lambda: Classifier(nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.ConvTranspose2d(6, 8, 2)), 8),
        (2, 4, 5, 5),
    ),
    "transposed, one dimension": (lambda: Classifier(nn.ConvTranspose1d(3, 8, 3), 8), (2, 3, 7)),
    "transposed, three dimensions": (lambda: Classifier(nn.ConvTranspose3d(3, 8, 3), 8), (2, 3, 3, 4, 5)),
    "a layer that runs twice": (
        lambda: (lambda one: nn.Sequential(one, nn.ReLU(), one, nn.Linear(4, 2)))(nn.Linear(4, 4)),
        (2, 4),
    ),
    "a linear layer on many dimensions": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Flatten(), nn.Linear(30, 2)),
        (2, 5, 4),
    ),
    "a weight that is computed": (
        lambda: Classifier(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), 8),
        (2, 3, 8, 8),
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_layers_are_covered_whole(name: str) -> None:
    make, shape = WHOLE[name]
    found = coverage(make(), *shape)
    assert (found.macs, found.part, found.reason) == (1.0, "", "")
    assert not [one for one in found.uncovered if one.macs != 0]
    assert 0 < found.bits <= 1


def test_a_linear_layer_on_transposed_input_multiplies_first_and_adds_the_bias_then() -> None:
    model = Functional(lambda x, _: x.transpose(1, 2))
    assert coverage(nn.Sequential(model, nn.Linear(5, 3), nn.Flatten(), nn.Linear(12, 2)), 2, 5, 4).macs == 1


AFFINE: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float]] = {
    "bias": (lambda y, c: y + c, 1),
    "bias in place": (lambda y, c: y.add_(c), 1),
    "subtracted": (lambda y, c: y - c, 1),
    "subtracted from": (lambda y, c: c - y, 1),
    "scale": (lambda y, c: y * c, 1),
    "scale in place": (lambda y, _: y.mul_(2.0), 1),
    "scale and bias": (lambda y, c: y * c + c, 1),
    "added to itself": (lambda y, _: y + y, 24 / 88),
    "square": (lambda y, _: y * y, 24 / 88),
    "another function": (lambda y, _: y.exp(), 24 / 88),
}


@pytest.mark.parametrize("name", AFFINE)
def test_a_product_is_covered_behind_a_constant_scale_or_bias(name: str) -> None:
    class Layer(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return AFFINE[name][0](F.linear(x, self.weight), self.bias)

    assert coverage(nn.Sequential(Layer(8, 8), nn.Linear(8, 3)), 2, 8).macs == pytest.approx(AFFINE[name][1])


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_memory_formats(memory_format: torch.memory_format) -> None:
    model = Classifier(stack(), 16).to(memory_format=memory_format)
    images = torch.randn(2, 3, 8, 8).to(memory_format=memory_format)
    assert find_sites(model, images).coverage.macs == 1


def test_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert coverage(Classifier(stack(), 16), 2, 3, 8, 8).macs == 1


FUNCTIONAL: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...], str, int]] = {
    "conv2d": (lambda x, w: F.conv2d(x, w), (16, 3, 3, 3), "aten::convolution", 36 * 27 * 16),
    "einsum": (lambda x, w: torch.einsum("bchw,dc->bdhw", x, w), (16, 3), "aten::bmm", 64 * 3 * 16),
    "matmul": (lambda x, w: (x.transpose(1, 3) @ w).transpose(1, 3), (3, 16), "aten::mm", 64 * 3 * 16),
}


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_what_belongs_to_no_layer_is_named(name: str) -> None:
    use, shape, operator, macs = FUNCTIONAL[name]
    found = coverage(Classifier(Functional(use, *shape), 16), 2, 3, 8, 8)
    assert found.macs == pytest.approx(FC / (FC + macs), rel=1e-12)
    (one,) = [one for one in found.uncovered if one.macs]
    assert (one.operator, one.module, one.kind, one.modules) == (operator, "backbone", "Functional", 1)


@pytest.mark.parametrize("batch_first", [True, False])
def test_the_products_within_an_attention_are_not_covered(batch_first: bool) -> None:
    block: nn.Module = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=batch_first)
    if not batch_first:
        inner = block
        block = Functional(lambda x, _: inner(x.transpose(0, 1)).transpose(0, 1))
        block.inner = inner
    found = coverage(Transformer(block), 2, 3, 16, 16)
    tokens = 16
    covered = tokens * (3 * 16 * 8 + 8 * 24 + 8 * 8 + 2 * 8 * 16) + 8 * 3
    hidden = 2 * tokens * tokens * 8
    assert found.macs == pytest.approx(covered / (covered + hidden), rel=1e-12)
    named = [one for one in found.uncovered if one.macs]
    assert {one.module.rpartition(".")[2] for one in named} == {"self_attn"}
    assert {one.kind for one in named} == {"MultiheadAttention"}
    assert sum(one.macs for one in named) == pytest.approx(1 - found.macs)


def test_equal_modules_are_named_together() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)
    model = Transformer(nn.TransformerEncoder(layer, 3, enable_nested_tensor=False))
    one = coverage(model, 2, 3, 16, 16).uncovered[0]
    assert (one.module, one.modules) == ("block.layers.0.self_attn", 3)
    assert "in 'block.layers.0.self_attn' and 2 more (MultiheadAttention, " in str(one)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        self.rnn = kind(4, 6, batch_first=True, **options)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.rnn(x)[0][:, -1])


@pytest.mark.parametrize(("kind", "gates"), [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4)])
def test_the_sums_within_a_recurrent_layer_are_not_covered(kind: type[nn.RNNBase], gates: int) -> None:
    found = coverage(Recurrent(kind), 2, 5, 4)
    assert found.macs == pytest.approx(18 / (18 + 5 * gates * 6 * (4 + 6)), rel=1e-12)
    assert {one.module for one in found.uncovered if one.macs} == {"rnn"}


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pair = nn.Bilinear(4, 3, 6)
        self.fc = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pair(x, x[..., :3]) @ torch.ones(6, 6)[0].diag())


def test_operators_that_the_counter_of_pytorch_does_not_know() -> None:
    found = coverage(Bilinear(), 2, 4)
    assert found.macs == pytest.approx((4 * 3 * 6 + 6 * 2) / (4 * 3 * 6 + 6 * 2 + 36))
    vector = Functional(lambda x, w: torch.stack([row @ w for row in x]), 4, 3)
    vector.fc = nn.Linear(4, 2)
    assert coverage(nn.Sequential(nn.Linear(4, 4), vector, nn.Linear(3, 2)), 2, 4).macs == pytest.approx(22 / 34)


class Embedded(nn.Module):
    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding
        self.fc = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        vectors = self.embedding(tokens)
        return self.fc(vectors if vectors.ndim == 2 else vectors.mean(dim=1))


@pytest.mark.parametrize(
    ("embedding", "bits"),
    [(nn.Embedding(20, 8), (7 * 8 + 3) / (7 * 8 + 8 + 3)), (nn.EmbeddingBag(20, 8), 1.0)],
)
def test_an_embedding_multiplies_nothing_and_is_an_activation(embedding: nn.Module, bits: float) -> None:
    found = find_sites(Embedded(embedding), torch.randint(20, (3, 7))).coverage
    assert found.macs == 1
    assert found.bits == pytest.approx(bits)


def test_activation_bits_are_the_results_of_all_operators_that_compute() -> None:
    # conv (8 x 36), relu (8 x 36), mean (8), fc (5): views, copies and weights do not count
    model = Classifier(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), 8)
    assert coverage(model, 2, 3, 8, 8).bits == pytest.approx((288 + 5) / (288 + 288 + 8 + 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_total_is_that_of_pytorch(dtype: torch.dtype) -> None:
    model = Transformer(nn.TransformerEncoderLayer(8, 2, batch_first=True, dropout=0.0)).to(dtype)
    images = torch.randn(2, 3, 16, 16, dtype=dtype, requires_grad=True)  # gradients keep to operators that it knows
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        with FlopCounterMode(display=False) as counter:
            model(images)
        with Count(model, images) as count:
            model(images)
    assert 2 * sum(one.macs for one in count._operations) == counter.get_total_flops()


@pytest.mark.parametrize("images", [1, 2, 5])
def test_the_number_of_images_changes_nothing(images: int) -> None:
    model = Classifier(nn.Sequential(stack(), nn.BatchNorm2d(16)), 16)
    assert coverage(model, images, 3, 8, 8) == coverage(model, 3, 3, 8, 8)


def quantised() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inner = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
        return torch.ao.quantization.quantize_dynamic(inner, {nn.Linear})


@torch.library.custom_op("resilient_heads_tests::double", mutates_args=())
def double(x: Tensor) -> Tensor:
    return x * 2


def test_operators_of_unknown_size_leave_the_share_open() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Functional(lambda x, _: double(x)), nn.Linear(4, 2))
    found = coverage(model, 2, 4)
    assert found.macs is None
    assert found.is_partial
    assert found.part == "of the covered part: an unknown share of multiply-accumulates"
    assert str(found).startswith("multiply-accumulates not counted, ")
    assert "resilient_heads_tests::double in '1' (Functional, an unknown number" in str(found)


@pytest.mark.skipif("x86" not in torch.backends.quantized.supported_engines, reason="no quantised kernels")
def test_quantised_layers_are_covered_where_they_return_floating_values() -> None:
    assert coverage(nn.Sequential(quantised(), nn.Linear(3, 2)), 2, 4).macs == 1
    assert coverage(quantised(), 2, 4).macs == 1
    found = coverage(nn.Sequential(quantised(), Functional(lambda x, w: x @ w, 3, 2), nn.Linear(2, 2)), 2, 4)
    assert found.macs == pytest.approx(4 / (4 + 6))  # without the quantised layers, so it is a lower bound


@pytest.mark.skipif("x86" not in torch.backends.quantized.supported_engines, reason="no quantised kernels")
def test_the_sums_within_a_quantised_recurrent_layer_are_not_covered() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(Recurrent(nn.LSTM).eval(), {nn.LSTM})
    found = coverage(model, 2, 5, 4)
    assert found.macs is None
    assert "quantized_lstm" in found.reason
    assert (found.uncovered[0].module, found.uncovered[0].kind) == ("rnn", "DynamicQuantizedLSTM")


def test_compiled_modules_are_counted_as_they_were() -> None:
    inner = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    model = nn.Sequential(Functional(lambda x, w: x @ w, 4, 4), nn.Linear(4, 2))
    model.insert(1, torch.compile(inner, backend="eager"))
    with torch.no_grad():
        model(torch.randn(2, 4))  # compiled before the search
    total = 16 + 32 + 32 + 8
    found = coverage(model, 2, 4)
    assert sum(one.macs for one in found.uncovered) == pytest.approx(1 - found.macs)
    assert next(one.macs for one in found.uncovered if one.module == "0") == pytest.approx(16 / total)


def test_a_model_that_cannot_be_counted_says_why() -> None:
    class Third(nn.Linear):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Third.calls += 1
            if Third.calls == 3:
                raise RuntimeError("no modes\nplease")
            return super().forward(x)

    found = coverage(nn.Sequential(Third(4, 2)), 2, 4)
    assert (found.macs, found.bits, found.uncovered) == (None, None, ())
    assert found.reason == "counting ended with RuntimeError: no modes"
    assert str(found).startswith("multiply-accumulates not counted, activation bits not counted (counting ended with")
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_a_model_that_multiplies_nothing() -> None:
    found = find_sites(nn.Sequential(nn.Embedding(5, 3), nn.Flatten()), torch.randint(5, (3, 2))).coverage
    assert (found.macs, found.bits) == (None, 1.0)
    assert "multiplies nothing" in str(found)


def test_a_part_of_a_result_covers_nothing() -> None:
    class First(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[:, :1]

    assert coverage(nn.Sequential(First(4, 3), nn.Linear(1, 2)), 2, 4).macs == pytest.approx(2 / 14)


def test_a_coverage_survives_the_record() -> None:
    model = nn.Sequential(Functional(lambda x, w: x @ w, 4, 4), nn.Linear(4, 2))
    found = coverage(model, 2, 4)
    assert Coverage.from_dict(found.as_dict()) == found
    assert found.uncovered == (
        Uncovered(operator="aten::mm", module="0", modules=1, kind="Functional", macs=2 / 3, bits=2 / 3),
    )


@pytest.mark.parametrize(
    ("fraction", "text"), [(1.0, "100 %"), (0.99999, "99.99 %"), (0.5, "50 %"), (0.031, "3.1 %"), (0, "0 %")]
)
def test_only_everything_is_100_percent(fraction: float, text: str) -> None:
    assert percent(fraction) == text


@pytest.mark.parametrize(("name", "shape"), [("resnet18", (2, 3, 32, 32)), ("video.r3d_18", (2, 3, 2, 16, 16))])
def test_models_of_torchvision(name: str, shape: tuple[int, ...]) -> None:
    models = pytest.importorskip("torchvision.models")
    make = models.resnet18 if name == "resnet18" else models.video.r3d_18
    sites = find_sites(make(num_classes=4).eval(), torch.randn(shape))
    assert (len(sites.reached), sites.coverage.macs) == (21, 1.0)
    assert 0.2 < sites.coverage.bits < 0.4
