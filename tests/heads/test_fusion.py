import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from helpers.heads import randomized
from resilient_heads.errors import ModelError
from resilient_heads.heads.fused_cosine import FusedCosineHead
from resilient_heads.heads.fusion import fuse_cosine, fuse_linear, norm_factor
from resilient_heads.heads.swap.wrap import fuse
from resilient_heads.heads.text_guided import TextGuidedHead

Layers = tuple[Tensor, Tensor | None, Tensor]


@st.composite
def layers(draw: st.DrawFn) -> Layers:
    """Latent (E, F) of any rank, bias (E,) or None, projection (C, E); float64."""
    features, embed, classes = draw(st.integers(1, 12)), draw(st.integers(1, 12)), draw(st.integers(1, 6))
    rank = draw(st.integers(0, min(features, embed)))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    bias = normal(embed) if draw(st.booleans()) else None
    return normal(embed, rank) @ normal(rank, features), bias, normal(classes, embed)


def batch(features: int) -> Tensor:
    return torch.randn(7, features, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def latent_of(layers: Layers, x: Tensor) -> np.ndarray:
    weight, bias, _ = layers
    z = x.numpy() @ weight.numpy().T
    return z if bias is None else z + bias.numpy()


def random_input(head: TextGuidedHead, batch: int = 6) -> Tensor:
    weight = head.latent.weight
    shape = (batch, weight.shape[1], 3, 2) if head.is_conv else (batch, weight.shape[1])
    return torch.randn(shape, dtype=weight.dtype)


@settings(max_examples=100, deadline=None, database=None)
@given(layers())
def test_fused_linear_is_the_product_of_the_two_layers(given: Layers) -> None:
    weight, bias, projection = given
    x = batch(weight.shape[1])
    fused, offset = fuse_linear(*given)
    assert (offset is None) == (bias is None)
    logits = nn.functional.linear(x, fused, offset).numpy()
    np.testing.assert_allclose(logits, latent_of(given, x) @ projection.numpy().T, rtol=1e-10, atol=1e-10)


@settings(max_examples=100, deadline=None, database=None)
@given(layers())
def test_norm_factor_keeps_the_norm_of_every_input(given: Layers) -> None:
    weight, bias, _ = given
    embed, features = weight.shape
    factor, shift = norm_factor(weight, bias)
    rows = min(embed, features + (bias is not None))
    assert factor.shape == (rows, features)
    assert (shift is None) == (bias is None)
    if rows == embed:
        assert torch.equal(factor, weight)
    if bias is not None and shift is not None:
        assert shift.shape == (rows,)
        weight, factor = torch.cat([weight, bias[:, None]], dim=1), torch.cat([factor, shift[:, None]], dim=1)
    np.testing.assert_allclose((factor.T @ factor).numpy(), (weight.T @ weight).numpy(), rtol=1e-10, atol=1e-10)


@settings(max_examples=100, deadline=None, database=None)
@given(layers())
def test_fused_cosine_gives_the_scores_and_the_norm(given: Layers) -> None:
    weight, bias, projection = given
    classes, features = projection.shape[0], weight.shape[1]
    fused, offset = fuse_cosine(*given)
    assert fused.shape == (classes + min(weight.shape[0], features + (bias is not None)), features)
    x = batch(features)
    y, z = nn.functional.linear(x, fused, offset).numpy(), latent_of(given, x)
    np.testing.assert_allclose(y[:, :classes], z @ projection.numpy().T, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(
        np.linalg.norm(y[:, classes:], axis=1), np.linalg.norm(z, axis=1), rtol=1e-10, atol=1e-10
    )


def test_products_of_float32_layers_are_rounded_only_once() -> None:
    latent, bias, projection = torch.randn(256, 20), torch.randn(256), torch.randn(30, 256)
    exact = projection.double().numpy() @ latent.double().numpy()
    fused, offset = fuse_linear(latent, bias, projection)
    np.testing.assert_allclose(fused.numpy(), exact, rtol=1e-7)
    assert offset is not None
    np.testing.assert_allclose(offset.numpy(), projection.double().numpy() @ bias.double().numpy(), rtol=1e-7)


@pytest.mark.parametrize(("features", "embed"), [(3, 8), (8, 3)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_results_have_the_dtype_of_the_latent_and_memory_of_their_own(
    features: int, embed: int, dtype: torch.dtype
) -> None:
    latent, bias, projection = torch.randn(embed, features, dtype=dtype), torch.randn(embed), torch.randn(5, embed)
    bias, projection = bias.to(dtype), projection.to(dtype)
    before = [latent.clone(), bias.clone(), projection.clone()]
    for function in (lambda: fuse_cosine(latent, bias, projection), lambda: norm_factor(latent, bias)):
        weight, offset = function()
        assert weight.dtype == dtype
        assert offset is not None
        assert offset.dtype == dtype
        weight.zero_()
        offset.zero_()
    assert all(map(torch.equal, before, [latent, bias, projection]))


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("features", [4, 11, 12, 30])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_fused_cosine_head_equals_the_head(
    features: int, bias: bool, conv: bool, dtype: torch.dtype, tolerance: float
) -> None:
    head = randomized(TextGuidedHead(features, (9, 12), bias=bias, conv=conv, dtype=dtype))
    fused = fuse(head)
    assert isinstance(fused, FusedCosineHead)
    assert type(fused.layer) is (nn.Conv2d if conv else nn.Linear)
    assert fused.layer.weight.shape[0] == 9 + min(12, features + bias)
    x = random_input(head)
    torch.testing.assert_close(fused(x), head(x), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_fused_linear_head_is_a_plain_layer(bias: bool, conv: bool, dtype: torch.dtype, tolerance: float) -> None:
    head = randomized(TextGuidedHead(20, (9, 12), normalize=False, bias=bias, conv=conv, dtype=dtype))
    fused = fuse(head)
    assert type(fused) is (nn.Conv2d if conv else nn.Linear)
    stock = nn.Conv2d(20, 9, 1, bias=bias, dtype=dtype) if conv else nn.Linear(20, 9, bias=bias, dtype=dtype)
    stock.load_state_dict(fused.state_dict(), strict=True)
    x = random_input(head)
    torch.testing.assert_close(stock(x), head(x), rtol=tolerance, atol=tolerance)
    assert repr(fused) == repr(stock)


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("features", [4, 30])
def test_bfloat16_heads_fuse_to_within_their_own_rounding(features: int, normalize: bool, conv: bool) -> None:
    head = TextGuidedHead(features, (9, 12), normalize=normalize, conv=conv, dtype=torch.bfloat16)
    fused = fuse(head)
    x = random_input(head)
    logits = fused(x)
    assert logits.dtype == torch.bfloat16
    exact = copy.deepcopy(head).double()(x.double())
    largest = exact.abs().max()
    assert (logits - exact).abs().max() < 0.02 * largest
    assert (head(x) - exact).abs().max() < 0.02 * largest


@pytest.mark.parametrize("shape", [(30,), (2, 3, 30), (0, 30)])
@pytest.mark.parametrize("normalize", [False, True])
def test_fused_heads_take_features_of_any_leading_shape(shape: tuple[int, ...], normalize: bool) -> None:
    head = randomized(TextGuidedHead(30, (9, 12), normalize=normalize, dtype=torch.float64))
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(fuse(head)(x), head(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_latent_of_zero_gives_logits_of_zero(dtype: torch.dtype) -> None:
    head = TextGuidedHead(5, (3, 8), bias=False, dtype=dtype)
    zeros = torch.zeros(2, 5, dtype=dtype)
    assert head(zeros).tolist() == fuse(head)(zeros).tolist() == torch.zeros(2, 3).tolist()


@pytest.mark.parametrize("normalize", [False, True])
def test_fusing_a_head_leaves_it_untouched(normalize: bool) -> None:
    head = TextGuidedHead(20, (9, 12), normalize=normalize)
    before = copy.deepcopy(head.state_dict())
    fused = fuse(head)
    assert fused is not head
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.fill_(0.5)
    assert head.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in head.state_dict().items())


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("trainable", [False, True])
def test_fused_layer_keeps_mode_and_requires_grad(normalize: bool, training: bool, trainable: bool) -> None:
    head = TextGuidedHead(20, (9, 12), normalize=normalize).train(training).requires_grad_(trainable)
    fused = fuse(head)
    assert all(module.training == training for module in fused.modules())
    assert [p.requires_grad for p in fused.parameters()] == [trainable] * (3 if normalize else 2)
    assert all(p.grad_fn is None for p in fused.parameters())


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("frozen", ["latent", "projection"])
def test_fused_layer_can_be_trained_where_one_of_its_two_could(normalize: bool, frozen: str) -> None:
    head = TextGuidedHead(20, (9, 12), normalize=normalize)
    head.get_submodule(frozen).requires_grad_(False)
    assert all(parameter.requires_grad for parameter in fuse(head).parameters())


def test_fused_cosine_head_keeps_names_and_state_dict_keys() -> None:
    embeddings_of_three = TextGuidedHead(20, torch.eye(3, 12))
    fused = fuse(embeddings_of_three)
    assert isinstance(fused, FusedCosineHead)
    assert fused.class_names == embeddings_of_three.class_names == ("class 0", "class 1", "class 2")
    assert set(fused.state_dict()) == {"layer.weight", "layer.bias", "logit_scale"}
    assert fused.logit_scale.shape == (1,)
    assert "num_classes=3" in repr(fused)


def test_a_fused_head_learns() -> None:
    fused = fuse(TextGuidedHead(20, (9, 12)))
    fused(torch.randn(4, 20)).logsumexp(dim=1).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in fused.parameters())


def test_errors_say_what_to_do_first() -> None:
    with pytest.raises(ModelError, match="in_features are still open; wrap a model"):
        fuse(TextGuidedHead(None, (9, 12)))
    with pytest.raises(ModelError, match="no unfused text-guided head; call wrap_model"):
        fuse(fuse(TextGuidedHead(20, (9, 12))))
    with pytest.raises(ModelError, match="no unfused text-guided head; call wrap_model"):
        fuse(fuse(TextGuidedHead(20, (9, 12), normalize=False)))
