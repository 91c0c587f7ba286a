import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

import resilient_heads as rh
from helpers.heads import random_embeddings, snapshot
from resilient_heads.errors import ArgumentError, EmbeddingError, ModelError
from resilient_heads.heads.find.locate import find_classifiers, find_heads
from resilient_heads.heads.fused_cosine import FusedCosineHead
from resilient_heads.heads.swap.wrap import fuse, is_wrapped, unwrap_model, wrap_model
from resilient_heads.heads.text_guided import TextGuidedHead

F, C, E = 8, 10, 12


class Small(nn.Module):
    """A model of six inputs: ``fc`` is the classifier and the last layer, ``aside`` another Linear."""

    def __init__(self, classes: int = C, bias: bool = True) -> None:
        super().__init__()
        self.num_classes = classes
        self.body = nn.Linear(6, F)
        self.norm = nn.BatchNorm1d(F)
        self.aside = nn.Linear(F, F)
        self.fc = nn.Linear(F, classes, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.body(x)).relu())


class Conv(nn.Module):
    """Like Small, with a 1x1 convolution as its classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, F, 3)
        self.head = nn.Conv2d(F, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu()).mean(dim=(2, 3))


def inputs(model: nn.Module) -> Tensor:
    dtype = next(model.parameters()).dtype
    return torch.randn(5, 3, 4, 4, dtype=dtype) if isinstance(model, Conv) else torch.randn(5, 6, dtype=dtype)


def assert_same_bits(before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    assert list(before) == list(after)
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype, name
        assert torch.equal(tensor, after[name]), name


@pytest.mark.parametrize("build", [Small, Conv])
@pytest.mark.parametrize("normalize", [False, True])
def test_wrapping_replaces_the_classifier_and_nothing_else(build: type[nn.Module], normalize: bool) -> None:
    model = build()
    place = find_classifiers(model)[0]
    before = {name: (id(p), p.detach().clone()) for name, p in model.named_parameters() if place.name not in name}
    text = random_embeddings()
    assert not is_wrapped(model)
    assert wrap_model(model, embeddings=text, normalize=normalize) is model
    assert is_wrapped(model)
    head = model.get_submodule(place.name)
    assert isinstance(head, TextGuidedHead)
    assert find_heads(model) == {place.name: head}
    assert (head.in_features, head.num_classes, head.is_conv) == (F, C, build is Conv)
    assert head.normalize == normalize
    assert head.class_names == text.class_names
    expected = text.vectors / text.vectors.norm(dim=1, keepdim=True) if normalize else text.vectors
    assert torch.allclose(head.projection.weight.flatten(1), expected)
    after = dict(model.named_parameters())
    for name, (identity, values) in before.items():
        assert id(after[name]) == identity, name
        assert torch.equal(after[name], values), name
    assert set(after) - set(before) == {f"{place.name}.{name}" for name, _ in head.named_parameters()}
    assert model(inputs(model)).shape == (5, C)


@pytest.mark.parametrize("build", [Small, Conv])
@pytest.mark.parametrize("fused", [False, True])
def test_unwrapping_restores_every_bit(build: type[nn.Module], fused: bool) -> None:
    model = build().eval()
    place, before, x = find_classifiers(model)[0], snapshot(model), inputs(model)
    golden = model(x)
    wrap_model(model, embeddings=random_embeddings())
    if fused:
        fuse(model)
    assert not torch.equal(model(x), golden)
    assert unwrap_model(model) is model
    assert not is_wrapped(model)
    assert model.get_submodule(place.name) is place.leaf
    assert_same_bits(before, model.state_dict())
    assert torch.equal(model(x), golden)


def test_unwrapped_model_can_be_wrapped_and_unwrapped_again() -> None:
    model = Small()
    leaf = model.fc
    for _ in range(2):
        unwrap_model(wrap_model(model, embeddings=random_embeddings()))
    assert model.fc is leaf


def test_unwrapping_follows_the_dtype_and_the_mode_that_the_head_has_now() -> None:
    model = Small().train()
    before = snapshot(model)
    wrap_model(model, embeddings=random_embeddings()).double().eval()
    unwrap_model(model)
    assert model.fc.weight.dtype == model.fc.bias.dtype == torch.float64
    assert not model.fc.training
    assert torch.equal(model.fc.weight, before["fc.weight"].double())


def test_unwrapping_after_a_detour_through_half_precision_loses_nothing_of_the_classifier() -> None:
    model = Small()
    weight = model.fc.weight.detach().clone()
    wrap_model(model, embeddings=random_embeddings()).bfloat16().float()
    assert torch.equal(unwrap_model(model).fc.weight, weight)


def test_training_the_head_does_not_change_the_replaced_layer() -> None:
    model = Small()
    weight = model.fc.weight.detach().clone()
    wrap_model(model, embeddings=random_embeddings())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(unwrap_model(model).fc.weight, weight)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_wrapped_model_can_be_unwrapped(copied: Callable[[nn.Module], nn.Module]) -> None:
    model = Small().eval()
    leaf, before = model.fc, snapshot(model)
    wrap_model(model, embeddings=random_embeddings())
    twin = copied(model)
    x = inputs(model)
    assert torch.equal(twin(x), model(x))
    assert_same_bits(before, unwrap_model(twin).state_dict())
    assert twin.fc is not leaf
    assert is_wrapped(model)
    assert unwrap_model(model).fc is leaf


def test_the_state_dict_of_a_wrapped_model_does_not_hold_the_replaced_layer() -> None:
    model = wrap_model(Small(), embeddings=random_embeddings())
    names = {name for name in model.state_dict() if name.startswith("fc.")}
    assert names == {"fc.latent.weight", "fc.latent.bias", "fc.projection.weight", "fc.logit_scale"}
    twin = wrap_model(Small(), embeddings=random_embeddings())
    twin.load_state_dict(model.state_dict(), strict=True)
    assert_same_bits(model.state_dict(), twin.state_dict())


@pytest.mark.parametrize("given", ["embeddings", "head", "open head"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("build", [Small, Conv])
def test_head_takes_over_dtype_device_mode_and_requires_grad(
    given: str, dtype: torch.dtype, device: str, build: type[nn.Module]
) -> None:
    for training in (False, True):
        model = build().to(device=device, dtype=dtype)
        leaf = find_classifiers(model)[0].leaf
        leaf.train(training).requires_grad_(training)
        if given == "embeddings":
            wrap_model(model, embeddings=random_embeddings())
        else:
            where: dict[str, Any] = {"in_features": F} if given == "head" else {"in_features": None, "device": device}
            wrap_model(model, head=TextGuidedHead(classes=random_embeddings(), conv=build is Conv, **where))
        (head,) = find_heads(model).values()
        assert all(module.training == training for module in head.modules())
        for parameter in head.parameters():
            assert parameter.dtype == dtype
            assert parameter.device.type == device
            assert parameter.requires_grad == training
        assert model.training
        assert model.body.weight.requires_grad
        x = inputs(model).to(device)
        assert model(x).shape == (5, C)
        assert model(x).dtype == dtype


@pytest.mark.parametrize("bias", [False, True])
def test_latent_has_a_bias_where_the_classifier_had_one(bias: bool) -> None:
    assert (wrap_model(Small(bias=bias), embeddings=random_embeddings()).fc.latent.bias is not None) == bias


def test_a_given_head_is_not_copied() -> None:
    head, model = TextGuidedHead(F, random_embeddings(), normalize=False), Small()
    before = snapshot(head)
    assert wrap_model(model, head=head).fc is head
    assert_same_bits(before, head.state_dict())


@pytest.mark.parametrize("build", [Small, Conv])
def test_open_features_are_set_without_a_warning(build: type[nn.Module]) -> None:
    text = random_embeddings()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        head = TextGuidedHead(None, text, conv=build is Conv)
        model = wrap_model(build(), head=head)
    assert [str(warning.message) for warning in caught] == []
    assert head.in_features == F
    assert type(head.latent) is (nn.Conv2d if build is Conv else nn.Linear)
    assert all(parameter.is_leaf and parameter.grad is None for parameter in head.parameters())
    assert torch.allclose(head.projection.weight.flatten(1), nn.functional.normalize(text.vectors))
    wrap_model(build(), embeddings=text).load_state_dict(model.state_dict(), strict=True)


def test_prebuilt_embeddings_by_name_and_by_default() -> None:
    ten = wrap_model(Small(), embeddings="cifar10").fc
    assert ten.class_names == rh.load_embeddings("cifar10").class_names
    thousand = wrap_model(Small(1000)).fc
    imagenet = rh.load_embeddings("imagenet1k")
    assert thousand.class_names == imagenet.class_names
    assert thousand.provenance == imagenet.provenance
    assert torch.allclose(thousand.projection.weight, nn.functional.normalize(imagenet.vectors))


def test_new_classes_change_the_models_number_of_classes_and_unwrapping_changes_it_back() -> None:
    model = Small()
    wrap_model(model, embeddings=random_embeddings(7), new_classes=True)
    assert model.num_classes == 7
    assert model(inputs(model)).shape == (5, 7)
    unwrap_model(fuse(model))
    assert model.num_classes == C
    conv = wrap_model(Conv(), head=TextGuidedHead(F, random_embeddings(7), conv=True), new_classes=True)
    assert not hasattr(conv, "num_classes")
    assert conv(inputs(conv)).shape == (5, 7)
    assert not hasattr(unwrap_model(conv), "num_classes")


def test_a_named_layer_is_replaced_instead_of_the_last() -> None:
    model = Small()
    with pytest.raises(ModelError, match=r"'aside' does not give the output of Small\. What gives it: fc"):
        wrap_model(model, embeddings=random_embeddings(F), classifier="aside")
    wrap_model(model, embeddings=random_embeddings(), classifier="fc")
    assert list(find_heads(model)) == ["fc"]
    nested = nn.Sequential(nn.Flatten(), Small())
    wrap_model(nested, embeddings=random_embeddings(), classifier="1.fc")
    assert list(find_heads(nested)) == ["1.fc"]
    assert isinstance(unwrap_model(nested)[1].fc, nn.Linear)


def test_find_classifier_describes_the_place() -> None:
    model = nn.Sequential(nn.Flatten(), Small())
    place = find_classifiers(model)[0]
    assert (place.name, place.key, place.in_features, place.num_classes) == ("1.fc", "fc", F, C)
    assert place.parent is model[1]
    assert place.leaf is model[1].fc
    conv = find_classifiers(Conv())[0]
    assert (conv.name, conv.in_features, conv.num_classes) == ("head", F, C)


@pytest.mark.parametrize("build", [Small, Conv])
def test_fusing_a_linear_head_gives_a_stock_model(build: type[nn.Module]) -> None:
    model = wrap_model(build().double().eval(), embeddings=random_embeddings(), normalize=False)
    x = inputs(model)
    expected = model(x)
    assert fuse(model) is model
    assert not is_wrapped(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
    stock = build().double().eval()
    stock.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(stock(x), model(x))
    with pytest.raises(ModelError, match=r"not wrapped.*a fused linear head is a plain nn.Linear.*cannot be undone"):
        unwrap_model(model)
    with pytest.raises(ModelError, match="call wrap_model"):
        fuse(model)


@pytest.mark.parametrize("build", [Small, Conv])
def test_fusing_a_cosine_head_keeps_the_logits(build: type[nn.Module]) -> None:
    model = wrap_model(build().double().eval(), embeddings=random_embeddings())
    model.requires_grad_(False)
    x = inputs(model)
    expected = model(x)
    assert fuse(model) is model
    (head,) = find_heads(model).values()
    assert isinstance(head, FusedCosineHead)
    assert is_wrapped(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(ModelError, match="call wrap_model"):
        fuse(model)
    with pytest.raises(ModelError, match="already has a text-guided head"):
        wrap_model(model, embeddings=random_embeddings())


def test_fuse_reaches_every_head_of_a_model() -> None:
    pair = nn.ModuleList([wrap_model(Small().double().eval(), embeddings=random_embeddings()) for _ in range(2)])
    x = inputs(pair)
    expected = [model(x) for model in pair]
    fuse(pair)
    assert [type(head) for head in find_heads(pair).values()] == [FusedCosineHead, FusedCosineHead]
    for model, logits in zip(pair, expected, strict=True):
        torch.testing.assert_close(model(x), logits, rtol=1e-10, atol=1e-10)
    assert not is_wrapped(unwrap_model(pair))


@pytest.mark.parametrize("normalize", [False, True])
def test_a_wrapped_model_learns(normalize: bool) -> None:
    model = wrap_model(Small(3).train(), embeddings=random_embeddings(3), normalize=normalize)
    labels = torch.arange(60) % 3
    x = torch.randn(3, 6)[labels] + 0.3 * torch.randn(60, 6)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    before, losses = snapshot(model), []
    for _ in range(40):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    after = model.state_dict()
    for name in ("body.weight", "fc.latent.weight", "fc.projection.weight", *(["fc.logit_scale"] if normalize else [])):
        assert not torch.equal(after[name], before[name]), name


def test_a_relu_behind_the_classifier_raises_a_warning() -> None:
    model = nn.Sequential(nn.Conv2d(3, C, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.warns(UserWarning, match=r"A ReLU follows the classifier '0'.*never negative") as caught:
        wrap_model(model, embeddings=random_embeddings())
    assert [warning.filename for warning in caught] == [__file__]


def headless(model: nn.Module) -> nn.Module:
    model.fc = nn.Identity()
    return model


def resnet18() -> nn.Module:
    with torch.device("meta"):
        return models.resnet18()


def compiled_in_place() -> nn.Module:
    model = Small()
    model.compile(backend="eager")
    return model


def with_lazy_classifier() -> nn.Module:
    model = Small()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fc = nn.LazyLinear(C)
    return model


# What is wrong: the model, the options of wrap_model, the error, and what its message must say.
BAD_INPUT: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], type[Exception], str]] = {
    "wrong number of classes": (
        resnet18,
        {"embeddings": random_embeddings(10)},
        ModelError,
        r"'fc' has 1000 classes, the embeddings have 10\. Build .* num_classes=10, or pass new_classes=True",
    ),
    "wrong number of classes of a head": (
        Small,
        {"head": TextGuidedHead(F, (7, E))},
        ModelError,
        r"has 10 classes, the embeddings have 7\. Build the model with num_classes=7, or pass new_classes=True",
    ),
    "wrapped twice": (
        lambda: wrap_model(Small(), embeddings=random_embeddings()),
        {"embeddings": random_embeddings()},
        ModelError,
        r"Small already has a text-guided head at 'fc'; call unwrap_model\(model\) first",
    ),
    "compiled": (
        lambda: torch.compile(Small(), backend="eager"),
        {"embeddings": random_embeddings()},
        ModelError,
        "The model is compiled.*; wrap it first, then compile it",
    ),
    "compiled in place": (
        compiled_in_place,
        {"embeddings": random_embeddings()},
        ModelError,
        "The model is compiled.*; wrap it first, then compile it",
    ),
    "compiled within": (
        lambda: nn.Sequential(torch.compile(nn.Linear(3, F), backend="eager"), nn.Linear(F, C)),
        {"embeddings": random_embeddings()},
        ModelError,
        "contains a compiled module; wrap it first, then compile it",
    ),
    "classifier removed": (
        lambda: headless(resnet18()),
        {"embeddings": random_embeddings()},
        ModelError,
        "ResNet has no classifier where one was expected: its last layer 'layer4.1.bn2' is a BatchNorm2d",
    ),
    "classifier removed, others left": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4)),
        {"embeddings": random_embeddings()},
        ModelError,
        r"Name it: classifier=\"1\" \(candidates: 0, 1\)",
    ),
    "no parameters": (
        lambda: nn.Sequential(nn.ReLU()),
        {"embeddings": random_embeddings()},
        ModelError,
        "Sequential has no parameters, so it has no classifier to replace",
    ),
    "a model that is the classifier": (
        lambda: nn.Linear(F, C),
        {"embeddings": random_embeddings()},
        ModelError,
        "The model is itself a Linear layer; pass the model that contains it, or use a TextGuidedHead",
    ),
    "unknown path": (
        Small,
        {"embeddings": random_embeddings(), "classifier": "head"},
        ModelError,
        r"Small has no layer named 'head'\. Name it: classifier=\"fc\" \(candidates: body, aside, fc\)",
    ),
    "empty path": (
        Small,
        {"embeddings": random_embeddings(), "classifier": ""},
        ModelError,
        r"Small has no layer named ''\. Name it: classifier=\"fc\"",
    ),
    "path to another kind of layer": (
        Small,
        {"embeddings": random_embeddings(), "classifier": "norm"},
        ModelError,
        r"'norm' is a BatchNorm1d; a classifier must be a Linear or a 1x1 Conv2d\. Name it: classifier=\"fc\"",
    ),
    "large convolution": (
        lambda: nn.Sequential(nn.Conv2d(3, C, 3)),
        {"embeddings": random_embeddings()},
        ModelError,
        "its last layer '0' is a Conv2d. The model has no Linear and no 1x1 Conv2d layer",
    ),
    "grouped convolution": (
        lambda: nn.Sequential(nn.Conv2d(F, C, 1, groups=2)),
        {"embeddings": random_embeddings(), "classifier": "0"},
        ModelError,
        "a classifier must be a Linear or a 1x1 Conv2d",
    ),
    "strided convolution": (
        lambda: nn.Sequential(nn.Conv2d(F, C, 1, stride=2)),
        {"embeddings": random_embeddings(), "classifier": "0"},
        ModelError,
        "a classifier must be a Linear or a 1x1 Conv2d",
    ),
    "padded convolution": (
        lambda: nn.Sequential(nn.Conv2d(F, C, 1, padding=1)),
        {"embeddings": random_embeddings(), "classifier": "0"},
        ModelError,
        "a classifier must be a Linear or a 1x1 Conv2d",
    ),
    "lazy classifier": (with_lazy_classifier, {"embeddings": random_embeddings()}, ModelError, "'fc' is a LazyLinear"),
    "wrong number of features": (
        Small,
        {"head": TextGuidedHead(F + 1, (C, E))},
        ModelError,
        "'fc' has 8 input features, the head 9; build the head with in_features=8, or with None",
    ),
    "convolutional head for a Linear": (
        Small,
        {"head": TextGuidedHead(F, (C, E), conv=True)},
        ModelError,
        "'fc' is a Linear; build the head with conv=False",
    ),
    "linear head for a convolution": (
        Conv,
        {"head": TextGuidedHead(F, (C, E))},
        ModelError,
        "'head' is a Conv2d; build the head with conv=True",
    ),
    "a head that is none": (
        Small,
        {"head": nn.Linear(F, C)},
        ArgumentError,
        r"head must be a TextGuidedHead, such as rh.TextGuidedHead\(None, embeddings\); found Linear",
    ),
    "head and embeddings": (
        Small,
        {"head": TextGuidedHead(F, (C, E)), "embeddings": random_embeddings()},
        ArgumentError,
        "Pass either embeddings= or head=, not both",
    ),
    "embeddings without names": (
        Small,
        {"embeddings": torch.ones(C, E)},
        ArgumentError,
        r"must be ClassEmbeddings or a name, found Tensor; .*ClassEmbeddings\(vectors, class_names\)",
    ),
    "file of embeddings": (
        Small,
        {"embeddings": "own.safetensors"},
        ArgumentError,
        r"is a file; pass rh\.ClassEmbeddings\.load\('own\.safetensors'\)",
    ),
    "sentences": (
        Small,
        {"embeddings": {"cat": ["It purrs."]}},
        ArgumentError,
        r"found dict; for sentences by class name: rh\.embed_classes\(.*rh\.text\.PrecomputedEncoder",
    ),
    "vectors by name": (
        Small,
        {"embeddings": {"cat": torch.ones(3)}},
        ArgumentError,
        r"found dict; for vectors by class name: rh\.ClassEmbeddings\(torch\.stack",
    ),
    "unknown embeddings": (
        Small,
        {"embeddings": "cifar11"},
        EmbeddingError,
        "No embeddings are named 'cifar11'; available: cifar10, cifar100, digits, food101, imagenet1k, stl10",
    ),
    "ten classes without names": (
        Small,
        {},
        ModelError,
        "10 classes, and their names are unknown.*cifar10, digits, stl10; pass a name or ClassEmbeddings",
    ),
    "eleven classes without names": (
        lambda: Small(11),
        {},
        ModelError,
        "11 classes, and their names are unknown. No prebuilt ones have that size; pass a name",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_refused_and_the_model_unchanged(case: str) -> None:
    build, options, error, message = BAD_INPUT[case]
    model = build()
    modules = dict(model.named_modules())
    classes = getattr(model, "num_classes", None)
    with pytest.raises(error, match=message):
        wrap_model(model, **options)
    assert dict(model.named_modules()) == modules
    assert getattr(model, "num_classes", None) == classes


def test_errors_are_value_errors_too() -> None:
    with pytest.raises(ValueError, match="not both"):
        wrap_model(Small(), head=TextGuidedHead(F, (C, E)), embeddings=random_embeddings())


def test_the_right_head_fits_after_a_wrong_one_was_refused() -> None:
    model = Small()
    for wrong in (TextGuidedHead(F + 1, (C, E)), TextGuidedHead(F, (C + 1, E)), TextGuidedHead(F, (C, E), conv=True)):
        with pytest.raises(ModelError):
            wrap_model(model, head=wrong)
    wrap_model(model, head=TextGuidedHead(F, (C, E)))
    assert is_wrapped(model)


def test_a_refused_head_is_left_as_it_was() -> None:
    head = TextGuidedHead(None, (C + 1, E)).eval()
    model = Small().double().requires_grad_(False)
    with pytest.raises(ModelError, match="has 10 classes, the embeddings have 11"):
        wrap_model(model, head=head)
    assert head.in_features is None
    assert head.projection.weight.dtype == torch.float32
    assert head.projection.weight.requires_grad
    assert not head.training


def test_a_head_serves_one_model_at_a_time() -> None:
    head = TextGuidedHead(F, (C, E))
    first, second = wrap_model(Small(), head=head), Small()
    with pytest.raises(ModelError, match="in a model already; build another one, or unwrap that model first"):
        wrap_model(second, head=head)
    assert not is_wrapped(second)
    unwrap_model(first)
    leaf = second.fc
    assert unwrap_model(wrap_model(second, head=head)).fc is leaf


@pytest.mark.parametrize("fused", [False, True])
def test_a_classifier_of_two_names_is_replaced_under_both(fused: bool) -> None:
    model = Small()
    model.last = leaf = model.fc
    wrap_model(model, embeddings=random_embeddings())
    if fused:
        fuse(model)
    assert model.last is model.fc
    assert isinstance(model.fc, FusedCosineHead if fused else TextGuidedHead)
    unwrap_model(model)
    assert model.last is model.fc is leaf


def test_a_classifier_without_values_cannot_be_restored() -> None:
    with torch.device("meta"):
        model = Small()
    wrap_model(model, embeddings=random_embeddings()).to_empty(device="cpu")
    with pytest.raises(ModelError, match="'fc' replaced was on the meta device and has no values"):
        unwrap_model(model)
    assert is_wrapped(model)


@pytest.mark.parametrize("function", [wrap_model, unwrap_model, fuse, is_wrapped, find_classifiers])
def test_anything_but_a_module_is_refused(function: Callable[[Any], Any]) -> None:
    with pytest.raises(ArgumentError, match=r'model must be a Module, such as .*; found "resnet18"'):
        function("resnet18")


def test_unwrap_refuses_a_head_that_wrap_did_not_put_there() -> None:
    with pytest.raises(ModelError, match="Small is not wrapped"):
        unwrap_model(Small())
    unwrapped = Small()
    unwrapped.fc = TextGuidedHead(F, random_embeddings())
    with pytest.raises(ModelError, match="wrap_model did not put the head at 'fc' there"):
        unwrap_model(unwrapped)
    assert isinstance(unwrapped.fc, TextGuidedHead)
    with pytest.raises(ModelError, match="the head itself"):
        unwrap_model(TextGuidedHead(F, random_embeddings()))
    taken_out = wrap_model(Small(), head=unwrapped.fc)
    unwrap_model(taken_out)
    with pytest.raises(ModelError, match="wrap_model did not put the head at 'fc' there"):
        unwrap_model(unwrapped)
    mixed = nn.ModuleList([wrap_model(Small(), embeddings=random_embeddings()), unwrapped])
    with pytest.raises(ModelError, match=r"did not put the head at '1\.fc' there"):
        unwrap_model(mixed)
    assert is_wrapped(mixed[0])


def test_fuse_refuses_a_model_without_a_head() -> None:
    with pytest.raises(ModelError, match=r"Small has no unfused text-guided head; call wrap_model\(model\) first"):
        fuse(Small())


def test_public_names_are_these_functions() -> None:
    assert (rh.wrap_model, rh.unwrap_model, rh.fuse, rh.is_wrapped) == (wrap_model, unwrap_model, fuse, is_wrapped)
    assert rh.TextGuidedHead is TextGuidedHead
