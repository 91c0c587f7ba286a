"""Models whose output is not one logit vector a sample are refused; classifiers of any input are not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import resilient_heads as rh
from helpers.heads import random_embeddings
from resilient_heads.errors import ModelError
from resilient_heads.heads.find.locate import find_heads
from resilient_heads.heads.find.trace import trace


class Layers(nn.Module):
    """Layers by name; each case computes something else with them."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)


class Reconstruction(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x).relu())


class Variational(Layers):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, spread = self.mean(x), self.spread(x)
        return self.decoder(mean + spread.exp()), mean, spread


class Tasks(Layers):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"digit": self.digit(x), "colour": self.colour(x)}


class WithFeatures(Layers):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x).relu()
        return self.fc(features), features


class Spans(Layers):
    """Start and end scores for each position of a text, as question answering gives them."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.fc(self.embedding(x)).unbind(dim=-1)


class Frames(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.lstm(x)[0])


class Towers(Layers):
    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        return self.image(image) @ self.text(text).T


def reconstruction() -> nn.Module:
    return Reconstruction(encoder=nn.Linear(64, 8), decoder=nn.Linear(8, 64))


def tasks() -> nn.Module:
    return Tasks(digit=nn.Linear(6, 10), colour=nn.Linear(6, 5))


def frames() -> nn.Module:
    return Frames(lstm=nn.LSTM(6, 8, batch_first=True), fc=nn.Linear(8, 10))


def torchvision(kind: str, name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        module = pytest.importorskip(f"torchvision.models.{kind}")
        options = {} if kind == "optical_flow" else {"weights": None, "weights_backbone": None}
        with torch.device("cpu" if kind == "detection" else "meta"):
            return getattr(module, name)(**options)

    return build


def transformers(name: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        library = pytest.importorskip("transformers")
        return getattr(library, name)(getattr(library, config)(**options))

    return build


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
BERT = {**SMALL, "vocab_size": 50}
VIT = {**SMALL, "image_size": 32, "patch_size": 16}
GPT = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0}
VECTOR = r"expected one logit vector a sample"
UNKNOWN = r"Nothing shows that \w+ is a classifier.*as example_input=, or name the layer"
TENSORS = r"gives \d tensors.*expected one logit vector a sample.*name the layer that gives it: classifier="
DETECTOR = "is a detector: it gives boxes with scores, not one logit vector a sample"

REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "autoencoder": (reconstruction, r"output of its input's shape, \(2, 64\), as an autoencoder does"),
    "convolutional autoencoder": (
        lambda: Reconstruction(encoder=nn.Conv2d(3, 8, 3, padding=1), decoder=nn.Conv2d(8, 3, 1)),
        rf"gives \(2, 3, 224, 224\) for an input \(2, 3, 224, 224\); {VECTOR}, \(2, C\)",
    ),
    "variational autoencoder": (
        lambda: Variational(mean=nn.Linear(64, 4), spread=nn.Linear(64, 4), decoder=nn.Linear(4, 64)),
        r"gives 3 tensors, \(2, 64\), \(2, 4\), \(2, 4\)",
    ),
    "several tasks": (tasks, r"gives 2 tensors, \(2, 10\), \(2, 5\).*\(what gives the output: digit, colour\)"),
    "logits and features": (lambda: WithFeatures(body=nn.Linear(6, 8), fc=nn.Linear(8, 10)), TENSORS),
    "a vector a token": (
        lambda: nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 10)),
        rf"gives \(2, 8, 10\) for an input \(2, 8\); {VECTOR}",
    ),
    "a score a position": (lambda: Spans(embedding=nn.Embedding(50, 8), fc=nn.Linear(8, 2)), TENSORS),
    "two inputs": (lambda: Towers(image=nn.Linear(6, 8), text=nn.Linear(5, 8)), UNKNOWN),
    "unknown input": (frames, UNKNOWN),
    "mask": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 10, 1)), VECTOR),
}

LARGE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    **{
        name: (torchvision("detection", name), DETECTOR)
        for name in (
            "fasterrcnn_mobilenet_v3_large_320_fpn",
            "retinanet_resnet50_fpn",
            "ssdlite320_mobilenet_v3_large",
            "ssd300_vgg16",
            "fcos_resnet50_fpn",
            "keypointrcnn_resnet50_fpn",
            "maskrcnn_resnet50_fpn",
        )
    },
    **{
        name: (torchvision("segmentation", name), rf"gives \(2, 21, 224, 224\).*{VECTOR}")
        for name in ("deeplabv3_mobilenet_v3_large", "fcn_resnet50", "lraspp_mobilenet_v3_large")
    },
    "raft": (torchvision("optical_flow", "raft_small"), "RAFT has no classifier where one was expected"),
    "tokens": (transformers("BertForTokenClassification", "BertConfig", **BERT), r"gives \(2, 8, 2\)"),
    "question answering": (
        transformers("BertForQuestionAnswering", "BertConfig", **BERT),
        r"'qa_outputs' gives the output \(2, 8\).*expected one logit vector a sample, \(2, 2\)",
    ),
    "language model": (transformers("GPT2LMHeadModel", "GPT2Config", **GPT), r"gives \(2, 8, 50\)"),
    "backbone of text": (transformers("BertModel", "BertConfig", **BERT), TENSORS),
    "backbone of images": (transformers("ViTModel", "ViTConfig", **VIT), TENSORS),
    "masked images": (transformers("ViTForMaskedImageModeling", "ViTConfig", **VIT), r"gives \(2, 3, 32, 32\)"),
    "segmentation": (transformers("SegformerForSemanticSegmentation", "SegformerConfig"), r"gives \(2, 2, 56, 56\)"),
    "boxes": (transformers("YolosForObjectDetection", "YolosConfig", num_hidden_layers=1), r"gives \(2, 100, 3\)"),
    "image and text": (transformers("CLIPModel", "CLIPConfig"), UNKNOWN),
    "speech": (transformers("Wav2Vec2ForCTC", "Wav2Vec2Config", num_hidden_layers=1), r"gives \(2, 49, 32\)"),
}


def check_refused(build: Callable[[], nn.Module], message: str) -> None:
    model = build()
    modules = dict(model.named_modules())
    with pytest.raises(ModelError, match=message):
        rh.wrap_model(model, embeddings=random_embeddings(7), new_classes=True)
    assert dict(model.named_modules()) == modules


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_without_one_logit_vector_a_sample_is_refused(case: str) -> None:
    check_refused(*REFUSED[case])


@pytest.mark.slow
@pytest.mark.parametrize("case", LARGE)
def test_a_published_model_for_another_task_is_refused(case: str) -> None:
    check_refused(*LARGE[case])


@pytest.mark.parametrize("features", ["resnet10t", "test_vit"])
def test_a_feature_extractor_is_refused(features: str) -> None:
    timm = pytest.importorskip("timm")
    check_refused(lambda: timm.create_model(features, features_only=True), rf"gives \(2, .*{VECTOR}")


@pytest.mark.parametrize(
    ("name", "layer"), [("detection", "roi_heads.box_predictor.cls_score"), ("segmentation", "classifier.4")]
)
def test_naming_a_layer_does_not_make_a_detector_or_a_segmentation_model_a_classifier(name: str, layer: str) -> None:
    build, message = {
        "detection": LARGE["fasterrcnn_mobilenet_v3_large_320_fpn"],
        "segmentation": (LARGE["deeplabv3_mobilenet_v3_large"][0], r"'classifier\.4' gives the output \(2, 21, 224, 2"),
    }[name]
    model = build()
    with pytest.raises(ModelError, match=message):
        rh.wrap_model(model, embeddings=random_embeddings(7), new_classes=True, classifier=layer)
    assert not rh.is_wrapped(model)


@pytest.mark.parametrize(
    ("build", "layer", "shape"),
    [(reconstruction, "decoder", (2, 64)), (tasks, "digit", (2, 6)), (tasks, "colour", (2, 6))],
)
def test_a_named_layer_that_gives_one_vector_a_sample_is_replaced(
    build: Callable[[], nn.Module], layer: str, shape: tuple[int, ...]
) -> None:
    model = rh.wrap_model(build(), embeddings=random_embeddings(7), new_classes=True, classifier=layer)
    assert list(find_heads(model)) == [layer]
    output = model(torch.randn(shape))
    assert (output if isinstance(output, Tensor) else output[layer]).shape == (2, 7)


def test_an_example_input_shows_what_a_guess_cannot() -> None:
    with pytest.raises(ModelError, match=r"gives \(4, 5, 10\) for an input \(4, 5, 6\)"):
        rh.wrap_model(frames(), embeddings=random_embeddings(), example_input=torch.randn(4, 5, 6))
    last = nn.Sequential(frames(), nn.Flatten(0, 1))
    with pytest.raises(ModelError, match=r"gives \(20, 10\) for an input \(4, 5, 6\)"):
        rh.wrap_model(last, embeddings=random_embeddings(), example_input=torch.randn(4, 5, 6))
    named = rh.wrap_model(frames(), embeddings=random_embeddings(), classifier="fc")  # the user says so
    assert list(find_heads(named)) == ["fc"]


def test_a_layer_of_a_segmentation_model_can_be_protected() -> None:
    model = REFUSED["mask"][0]().eval()
    x = torch.randn(2, 3, 4, 4)
    golden = model(x)
    assert torch.equal(rh.protect_(model, checksum=True)(x), golden)


def test_a_caller_in_inference_mode_gets_the_same_trace() -> None:
    model, inputs = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)), None
    expected = trace(model)
    assert expected is not None
    with torch.inference_mode():
        inputs = torch.randn(2, 3, 8, 8)
        assert trace(model) == expected
        seen = trace(model, inputs)
    assert seen is not None
    assert (seen.shapes, seen.sources) == (((2, 10),), (frozenset({"3"}),))


CLASSIFIERS: dict[str, Callable[[], nn.Module]] = {
    "text": lambda: nn.Sequential(nn.EmbeddingBag(50, 8), nn.Linear(8, 10)),
    "tokens to one vector": lambda: nn.Sequential(nn.Embedding(50, 8), nn.Flatten(), nn.Linear(64, 10)),
    "fully convolutional": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 10, 1)),
    "sound": lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 10)),
    "volume": lambda: nn.Sequential(nn.Conv3d(1, 4, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 10)),
    "probabilities": lambda: nn.Sequential(nn.Linear(6, 10), nn.Softmax(dim=1)),
}


@pytest.mark.parametrize("case", CLASSIFIERS)
def test_a_classifier_of_any_input_is_wrapped(case: str) -> None:
    if case == "text":
        batch = torch.zeros(2, 8, dtype=torch.int64)
        rh.wrap_model(CLASSIFIERS[case](), embeddings=random_embeddings(), example_input=batch)
        return
    assert rh.is_wrapped(rh.wrap_model(CLASSIFIERS[case](), embeddings=random_embeddings()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["r3d_18", "mvit_v1_b", "swin3d_t"])
def test_a_classifier_of_videos_is_wrapped(name: str) -> None:
    video = pytest.importorskip("torchvision.models.video")
    with torch.device("meta"):
        model = getattr(video, name)()
    assert rh.is_wrapped(rh.wrap_model(model, embeddings=random_embeddings(7), new_classes=True))
