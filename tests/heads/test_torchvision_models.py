from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

from resilient_heads.heads.find.locate import find_classifiers, find_heads
from resilient_heads.heads.swap.wrap import fuse, is_wrapped, unwrap_model, wrap_model
from resilient_heads.heads.text_guided import TextGuidedHead
from resilient_heads.text.embeddings import ClassEmbeddings
from sweep import OnMeta

NAMES = models.list_models(module=models)
EMBEDDINGS = ClassEmbeddings(
    torch.randn(1000, 64, generator=torch.Generator().manual_seed(0)), tuple(f"class {i}" for i in range(1000))
)

# The first family that a name begins with says where its classifier is.
PLACES = {
    "alexnet": "classifier.6",
    "convnext": "classifier.2",
    "densenet": "classifier",
    "efficientnet": "classifier.1",
    "googlenet": "fc",
    "inception": "fc",
    "maxvit": "classifier.5",
    "mnasnet": "classifier.1",
    "mobilenet_v2": "classifier.1",
    "mobilenet_v3": "classifier.3",
    "regnet": "fc",
    "resnet": "fc",
    "resnext": "fc",
    "shufflenet": "fc",
    "squeezenet": "classifier.1",
    "swin": "head",
    "vgg": "classifier.6",
    "vit": "heads.head",
    "wide_resnet": "fc",
}
FEW = [next(name for name in NAMES if name.startswith(family)) for family in PLACES]  # the rest: -m sweep


def build(name: str) -> nn.Module:
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with OnMeta():
        return models.get_model(name, **options)


def test_the_list_is_complete() -> None:
    assert len(NAMES) >= 80


@pytest.mark.filterwarnings("ignore:A ReLU follows the classifier")
@pytest.mark.parametrize(
    "name", [name if name in FEW else pytest.param(name, marks=pytest.mark.sweep) for name in NAMES]
)
def test_every_model_is_wrapped_and_restored(name: str) -> None:
    model = build(name)
    path = next(path for family, path in PLACES.items() if name.startswith(family))
    leaf, keys, modules = model.get_submodule(path), list(model.state_dict()), dict(model.named_modules())
    assert type(leaf) is (nn.Conv2d if "squeezenet" in name else nn.Linear)

    wrap_model(model, embeddings=EMBEDDINGS)
    assert [name for name in find_heads(model) if not name.casefold().startswith("aux")] == [path]
    head = model.get_submodule(path)
    assert isinstance(head, TextGuidedHead)
    assert head.latent.weight.shape[:2] == (64, leaf.weight.shape[1])
    assert (head.num_classes, head.is_conv) == (1000, isinstance(leaf, nn.Conv2d))
    assert (head.latent.bias is None) == (leaf.bias is None) == (name == "maxvit_t")
    assert all(parameter.is_meta for parameter in head.parameters())
    heads = tuple(f"{name}." for name in find_heads(model))
    assert [key for key in model.state_dict() if not key.startswith(heads)] == [
        key for key in keys if not key.startswith(heads)
    ]

    unwrap_model(model)
    assert model.get_submodule(path) is leaf
    assert list(model.state_dict()) == keys
    assert dict(model.named_modules()) == modules


def vit() -> nn.Module:
    model = models.VisionTransformer(32, 16, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32)
    nn.init.normal_(model.heads.head.weight)  # it starts at zero, and zero logits would prove nothing
    return model


def swin() -> nn.Module:
    return models.SwinTransformer([4, 4], 8, [1, 1], [1, 2], [4, 4])


@pytest.mark.parametrize(
    ("build", "normalize"),
    [(models.resnet18, True), (models.mobilenet_v3_small, False), (vit, True), (swin, False)],
    ids=["resnet18", "mobilenet_v3_small", "vit", "swin"],
)
def test_real_weights_survive_a_round_trip(build: Any, normalize: bool) -> None:
    model = build().eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        golden = model(x)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        logits = wrap_model(model, embeddings=EMBEDDINGS, normalize=normalize)(x)
        assert logits.shape == (2, 1000)
        assert logits.isfinite().all()
        assert logits.std() > 0
        after = unwrap_model(model).state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
        assert torch.equal(model(x), golden)
        assert golden.std() > 0


def test_fused_linear_head_loads_into_the_stock_model() -> None:
    model = wrap_model(models.resnet18().eval(), embeddings=EMBEDDINGS, normalize=False)
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = model(x)
        stock = models.resnet18().eval()
        stock.load_state_dict(fuse(model).state_dict(), strict=True)
        logits = stock(x)
    assert type(model.fc) is nn.Linear
    assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()


def test_squeezenet_stays_convolutional_and_warns_about_its_relu() -> None:
    model = models.squeezenet1_1().eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        golden = model(x)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.warns(UserWarning, match=r"A ReLU follows the classifier 'classifier\.1'"):
            wrap_model(model, embeddings=EMBEDDINGS)
        (head,) = find_heads(model).values()
        assert isinstance(head, TextGuidedHead)
        assert head.is_conv
        logits = model(x)
        assert logits.shape == (2, 1000)
        assert logits.min() == 0
        assert logits.max() > 0
        fused = fuse(model)(x)
        assert (fused - logits).abs().max() < 1e-4 * logits.max()
        unwrap_model(model)
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
        assert torch.equal(model(x), golden)


@pytest.mark.parametrize("name", ["vit_b_32", "swin_t", "mnasnet0_5", "squeezenet1_0"])
@pytest.mark.filterwarnings("ignore:A ReLU follows the classifier")
def test_number_of_classes_follows_where_a_model_records_it(name: str) -> None:
    ten = EMBEDDINGS.select([f"class {i}" for i in range(10)])
    model = build(name)
    assert model.num_classes == 1000
    wrap_model(model, embeddings=ten, new_classes=True)
    assert model.num_classes == 10
    assert unwrap_model(model).num_classes == 1000


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b0", "vit_b_32"])
def test_a_removed_classifier_is_not_mistaken_for_another_layer(name: str) -> None:
    model = build(name)
    place = find_classifiers(model)[0]
    setattr(place.parent, place.key, nn.Identity())
    with pytest.raises(ValueError, match="no classifier where one was expected"):
        wrap_model(model, embeddings=EMBEDDINGS)
    assert not is_wrapped(model)
