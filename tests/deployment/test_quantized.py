import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import resilient_heads as rh
from resilient_heads.errors import ModelError

pytestmark = pytest.mark.filterwarnings("ignore")  # of torchao and torch.ao about themselves
Make = Callable[..., nn.Sequential]


@pytest.fixture(params=["torchao", "torch.ao"])
def quantize(request: pytest.FixtureRequest) -> Callable[[nn.Module], nn.Module]:
    """Return how to make a model's linear layers int8: by tensors that hold integers, or by other modules."""
    if request.param == "torch.ao":
        if not torch.backends.quantized.supported_engines:
            pytest.skip("this PyTorch has no quantised kernels")
        return lambda model: torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    quantization = pytest.importorskip("torchao.quantization", reason='needs the extra "recipes"')

    def tensors(model: nn.Module) -> nn.Module:
        quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
        return model

    return tensors


@pytest.mark.parametrize("kind", ["fused cosine", "fused linear", "cosine"])
def test_int8_logits_stay_close(kind: str, make: Make, quantize: Callable[[nn.Module], nn.Module]) -> None:
    model, images = make(kind), torch.randn(64, 3, 8, 8)
    exact = model(images)
    logits = quantize(copy.deepcopy(model))(images)
    assert 0 < (logits - exact).abs().max() < 0.05 * exact.abs().max()


def test_fuse_and_wrap_come_before_quantisation(
    make: Make, make_plain: Make, quantize: Callable[[nn.Module], nn.Module]
) -> None:
    for kind in ("cosine", "linear"):
        model = quantize(make(kind))
        with pytest.raises(ModelError, match=r"quantised.*; fuse first, then quantise"):
            rh.fuse(model)
        assert rh.is_wrapped(model)
    model = quantize(make_plain())
    with pytest.raises(ModelError, match=r"quantised.*wrap it first, then quantise"):
        rh.wrap_model(model, embeddings="digits")


def test_unwrapping_a_quantised_head_gives_the_old_layer_or_says_why_not(
    make: Make, quantize: Callable[[nn.Module], nn.Module]
) -> None:
    model = make("linear")
    plain, images = rh.unwrap_model(copy.deepcopy(model)), torch.randn(3, 3, 8, 8)
    small = quantize(copy.deepcopy(model))
    if next(small[-1].parameters(), None) is None:
        with pytest.raises(ModelError, match="is quantised; unwrap the model that it was made from"):
            rh.unwrap_model(small)
    else:
        assert torch.equal(rh.unwrap_model(small)(images), plain(images))


def test_all_heads_are_fused_or_none(make: Make) -> None:
    """An error at the second head must not leave the first one fused."""
    quantization = pytest.importorskip("torchao.quantization", reason='needs the extra "recipes"')
    both = nn.ModuleList([make("cosine"), make("cosine")])
    quantization.quantize_(both[1], quantization.Int8WeightOnlyConfig())
    kinds = [type(module) for module in both.modules()]
    with pytest.raises(ModelError, match="Int8Tensor"):
        rh.fuse(both)
    assert [type(module) for module in both.modules()] == kinds


def test_a_quantised_timm_classifier_is_named() -> None:
    timm = pytest.importorskip("timm")
    quantization = pytest.importorskip("torchao.quantization", reason='needs the extra "recipes"')
    model = timm.create_model("test_vit", num_classes=10)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    with pytest.raises(ModelError, match=r"'head' is a Linear whose weight is a Int8Tensor .*wrap it first"):
        rh.wrap_model(model, embeddings="digits")
