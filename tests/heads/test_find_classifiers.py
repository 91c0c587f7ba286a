"""Find classifiers that are not simply the last layer, and second classifiers."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import resilient_heads as rh
from helpers.heads import random_embeddings
from resilient_heads.errors import ModelError
from resilient_heads.heads.find.locate import find_classifiers, find_heads
from resilient_heads.heads.find.trace import trace
from resilient_heads.heads.text_guided import TextGuidedHead


class Net(nn.Module):
    """A body and a classifier; each case adds something."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 8)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).relu())


class NeverRun(Net):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(8, 10)


class SoftmaxAfter(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu_().softmax(dim=-1)


class Two(Net):
    """A second classifier adds to the output in evaluation, as VOLO's does."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x)) + 0.5 * self.second(self.body(x)[:, None]).amax(dim=1)


class WideInside(Net):
    """A model with an inner layer that has as many outputs as the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(10, 10)
        self.inner = nn.Linear(6, 10)
        self.norm = nn.LayerNorm(10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.inner(x)))


class Tied(Net):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.embedding.weight = self.fc.weight


class Counts(Net):
    """A model that depends on the number of classes after its classifier."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).unflatten(-1, (2, -1)).flatten(1)[:, :10]


def test_a_last_layer_that_never_runs_is_skipped() -> None:
    model = rh.wrap_model(NeverRun(), embeddings=random_embeddings())
    assert list(find_heads(model)) == ["fc"]
    assert model(torch.randn(3, 6)).shape == (3, 10)
    with pytest.raises(ModelError, match=r"'unused' does not give the output of NeverRun\. What gives it: fc"):
        rh.wrap_model(NeverRun(), embeddings=random_embeddings(), classifier="unused")


@pytest.mark.parametrize("build", [SoftmaxAfter, WideInside])
def test_the_classifier_is_found_behind_what_follows(build: type[nn.Module]) -> None:
    assert list(find_heads(rh.wrap_model(build(), embeddings=random_embeddings()))) == ["fc"]


def test_a_second_classifier_is_never_overlooked() -> None:
    for name in (None, "fc", "second"):
        model = Two()
        with pytest.raises(ModelError, match=r'would stay and contribute.*classifier=\("(fc|second)", "(fc|second)"\)'):
            rh.wrap_model(model, embeddings=random_embeddings(), classifier=name)
        assert not rh.is_wrapped(model)
    before, x = model.state_dict(), torch.randn(3, 6)
    golden = model(x)
    rh.wrap_model(model, embeddings=random_embeddings(), classifier=("fc", "second"))
    assert list(find_heads(model)) == ["fc", "second"]
    assert all(isinstance(head, TextGuidedHead) for head in find_heads(model).values())
    assert torch.equal(rh.unwrap_model(model)(x), golden)
    assert list(model.state_dict()) == list(before)
    with pytest.raises(ModelError, match="one head cannot replace them all"):
        rh.wrap_model(model, head=TextGuidedHead(8, (10, 4)), classifier=("fc", "second"))
    with pytest.raises(ModelError, match="names a layer twice"):
        rh.wrap_model(model, embeddings=random_embeddings(), classifier=("fc", "fc"))
    with pytest.raises(ModelError, match="names no layer"):
        rh.wrap_model(model, embeddings=random_embeddings(), classifier=())


def test_a_container_stands_for_the_only_layer_in_it() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 10), nn.Softmax(-1)))
    assert list(find_heads(rh.wrap_model(model, embeddings=random_embeddings(), classifier="1"))) == ["1.1"]
    two = nn.Sequential(nn.Linear(6, 8), nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 10)))
    with pytest.raises(ModelError, match=r"'1' is a Sequential; .*It contains 1\.0, 1\.1; name one of them"):
        rh.wrap_model(two, embeddings=random_embeddings(), classifier="1")


def test_shared_weights_are_refused() -> None:
    with pytest.raises(ModelError, match="'fc' is shared with 'embedding'"):
        rh.wrap_model(Tied(), embeddings=random_embeddings(), classifier="fc")


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_lazy_layer_is_refused_with_what_to_do() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.LazyLinear(10))
    with pytest.raises(ModelError, match="LazyLinear without sizes; run the model once"):
        rh.wrap_model(model, embeddings=random_embeddings())
    model(torch.randn(2, 6))
    assert rh.is_wrapped(rh.wrap_model(model, embeddings=random_embeddings()))


def test_a_reparametrised_layer_is_refused() -> None:
    model = Net()
    nn.utils.parametrizations.weight_norm(model.fc)
    with pytest.raises(ModelError, match="ParametrizedLinear with a parametrization"):
        rh.wrap_model(model, embeddings=random_embeddings(), classifier="fc")


def test_an_output_that_does_not_follow_the_classes_is_refused() -> None:
    model = Counts()
    with pytest.raises(ModelError, match="something after the classifier depends on their number"):
        rh.wrap_model(model, embeddings=random_embeddings(14), new_classes=True)
    assert type(model.fc) is nn.Linear
    assert rh.wrap_model(model, embeddings=random_embeddings())(torch.randn(3, 6)).shape == (3, 10)


class Volume(Net):
    """A model whose input shape cannot be guessed from its first layer."""

    def forward(self, x: Tensor) -> Tensor:
        _, five, six = x.shape
        assert (five, six) == (5, 6)
        return super().forward(x).mean(dim=1)


def test_an_example_input_replaces_a_guess() -> None:
    assert trace(Volume()) is None
    seen = trace(Volume(), torch.randn(4, 5, 6))
    assert seen is not None
    assert (seen.direct, seen.last, seen.shapes) == ({"fc": 10}, ("fc",), ((4, 10),))
    rh.wrap_model(Volume(), embeddings=random_embeddings(), example_input=torch.randn(4, 5, 6))
    with pytest.raises(ModelError, match=r"does not accept a batch of shape \(4, 5, 7\)"):
        rh.wrap_model(Volume(), embeddings=random_embeddings(), example_input=torch.randn(4, 5, 7))


def test_finding_classifiers_changes_nothing() -> None:
    model, called = Net().train(), []
    model.body.register_forward_hook(lambda *_: called.append(1))
    state = torch.random.get_rng_state()
    find_classifiers(model)
    assert not called
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)
    with torch.inference_mode():
        assert find_classifiers(model)[0].name == "fc"


def test_tracing_copies_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "__deepcopy__", lambda *_: pytest.fail("a weight was copied"))
    assert trace(Net()) is not None


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_classifiers_are_replaced_with_the_main_one(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        model = models.get_model(name, init_weights=False)
    rh.wrap_model(model, embeddings=random_embeddings(7), new_classes=True)
    auxiliary = {"googlenet": ["aux1.fc2", "aux2.fc2"], "inception_v3": ["AuxLogits.fc"]}[name]
    assert sorted(find_heads(model)) == sorted(["fc", *auxiliary])
    outputs = model.train()(torch.empty(2, 3, 299, 299, device="meta"))
    assert {tuple(output.shape) for output in outputs} == {(2, 7)}


TIMM = {
    "deit_tiny_distilled_patch16_224": ["head", "head_dist"],
    "volo_d1_224": ["head", "aux_head"],
    "crossvit_9_240": ["head.0", "head.1"],
    "efficientvit_m0": ["head.linear"],
    "efficientvim_m1": ["heads.0", "heads.1", "heads.2", "heads.3"],
    "levit_128": ["head.linear", "head_dist.linear"],
    "resnetv2_50": ["head.fc"],
    "dla34": ["fc"],
    "mobilenetv3_small_050": ["classifier"],
    "dpn68": ["classifier"],
    "rdnet_large": ["head.fc"],
}


QUICK = {"dla34", "resnetv2_50", "mobilenetv3_small_050", "levit_128"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in TIMM])
def test_timm_names_its_classifiers(name: str) -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    rh.wrap_model(model, embeddings=random_embeddings(7), new_classes=True)
    assert sorted(find_heads(model)) == sorted(TIMM[name])
    assert find_classifiers(rh.unwrap_model(model))[0].name == TIMM[name][0]
    rh.wrap_model(model, embeddings=random_embeddings(7), new_classes=True)
    assert model.num_classes == 7
    with pytest.raises(ModelError, match="reset_classifier would silently replace"):
        model.reset_classifier(5)
    rh.unwrap_model(model)
    assert model.num_classes == 1000
    model.reset_classifier(5)


def test_timms_linear_layer_is_a_classifier() -> None:
    """MobileNetV3 and similar models use a subclass of nn.Linear that computes what nn.Linear does."""
    timm = pytest.importorskip("timm")
    model = timm.create_model("mobilenetv3_small_050", pretrained=False, num_classes=10).eval()
    layer, images = model.classifier, torch.randn(2, 3, 64, 64)
    assert type(layer) is not nn.Linear
    before = model(images)
    rh.wrap_model(model, embeddings=random_embeddings(), init="from_classifier", normalize=False)
    assert torch.allclose(model(images), before, atol=1e-4)
    assert torch.allclose(rh.fuse(copy.deepcopy(model))(images), before, atol=1e-4)
    assert rh.unwrap_model(model).classifier is layer
    assert torch.equal(model(images), before)


class Adapted(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1.0


def test_another_subclass_of_linear_is_no_classifier() -> None:
    net = Net()
    net.fc = Adapted(8, 10)
    net.pretrained_cfg = {"classifier": "fc"}  # as a model of timm's says it
    with pytest.raises(ModelError, match=r"classifier 'fc' is a Adapted"):
        rh.wrap_model(net, embeddings=random_embeddings())
    with pytest.raises(ModelError, match="'fc' is a Adapted"):
        rh.wrap_model(net, embeddings=random_embeddings(), classifier="fc")


def test_timm_without_a_classifier_says_how_to_get_one() -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        model = timm.create_model("resnet18", pretrained=False, num_classes=0)
    with pytest.raises(ModelError, match=r"num_classes=0 .*model\.reset_classifier\(num_classes\)"):
        rh.wrap_model(model, embeddings=random_embeddings())


def hugging_face(kind: str, **options: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.DeiTConfig(image_size=32, patch_size=16, **small, **options)
    return getattr(transformers, kind)(config)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "heads"),
    [
        ("DeiTForImageClassification", ["classifier"]),
        ("DeiTForImageClassificationWithTeacher", ["cls_classifier", "distillation_classifier"]),
    ],
)
def test_transformers_labels_follow(kind: str, heads: list[str]) -> None:
    model = hugging_face(kind, num_labels=3).eval()
    old = (dict(model.config.id2label), dict(model.config.label2id))
    x = torch.randn(2, 3, 32, 32)
    golden = model(x).logits
    rh.wrap_model(model, embeddings=random_embeddings(7), new_classes=True)
    assert list(find_heads(model)) == heads
    assert model(x).logits.shape == (2, 7)
    assert (model.config.num_labels, model.config.id2label[6], model.config.label2id["name 6"]) == (7, "name 6", 6)
    assert model.num_labels == 7
    clone = pickle.loads(pickle.dumps(model))
    for each in (clone, model):
        assert torch.equal(rh.unwrap_model(each)(x).logits, golden)
        assert (each.config.id2label, each.config.label2id, each.num_labels) == (*old, 3)


def test_inner_counts_follow_and_return_within_a_larger_model() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_classes = 10
            self.fc = nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x)

    model = nn.Sequential(nn.Linear(6, 8), Head())
    rh.wrap_model(model, embeddings=random_embeddings(7), new_classes=True)
    outer = nn.ModuleDict({"net": copy.deepcopy(model)})
    outer.num_classes = 99
    assert model[1].num_classes == outer["net"][1].num_classes == 7
    rh.unwrap_model(outer)
    assert (outer["net"][1].num_classes, outer.num_classes, model[1].num_classes) == (10, 99, 7)
