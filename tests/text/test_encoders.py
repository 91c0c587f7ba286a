import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import resilient_heads as rh
from helpers.hub_server import HubServer
from resilient_heads.errors import (
    ArgumentError,
    DescriptionError,
    EmbeddingError,
    HubError,
    LongTextWarning,
    MissingExtraError,
)
from resilient_heads.text.encoders.batching import BatchedEncoder
from resilient_heads.text.encoders.huggingface import TransformersEncoder
from resilient_heads.text.encoders.named import encoder_id, named_encoder
from resilient_heads.text.encoders.openclip import OpenClipEncoder
from resilient_heads.text.encoders.openclip_source import known_to_open_clip
from resilient_heads.text.encoders.options import EncoderOptions
from resilient_heads.text.encoders.pins import PINS
from resilient_heads.text.encoders.precomputed import PrecomputedEncoder
from resilient_heads.text.encoders.protocol import TextEncoder
from resilient_heads.text.encoders.sentence import SentenceTransformerEncoder
from resilient_heads.text.hub.settings import HubSettings
from resilient_heads.text.prebuilt.bundled import load_bundled, load_descriptions

SENTENCES = ["a photo of a cat", "a dog", "An airplane has a long tube-shaped fuselage and two broad wings.", "a dog"]
LONG = "word " * 200


class Counting(BatchedEncoder):
    """An encoder without a model: tokens are words, and the embedding of a text is (number of words, 1)."""

    context_length, embed_dim = 5, 2

    def __init__(self, **choices: Any) -> None:
        super().__init__(EncoderOptions(**choices))
        self.batches: list[list[str]] = []

    def count_tokens(self, sentences: list[str]) -> list[int]:
        return [len(text.split()) for text in sentences]

    def run(self, sentences: list[str]) -> Tensor:
        self.batches.append(sentences)
        return torch.tensor([[float(len(text.split())), 1.0] for text in sentences])


def test_each_text_runs_once_and_like_lengths_run_together() -> None:
    counting = Counting(batch_size=2)
    found = counting.encode(["c c c", "a", "b b", "a", "d d d d"])
    assert found[:, 0].tolist() == [3, 1, 2, 1, 4]
    assert counting.batches == [["a", "b b"], ["c c c", "d d d d"]]


def test_batches_do_not_depend_on_the_order_of_the_input() -> None:
    one, other = Counting(batch_size=2), Counting(batch_size=2)
    one.encode(["x", "y z", "w"])
    other.encode(["w", "x", "y z"])
    assert one.batches == other.batches


def test_no_text_gives_an_empty_matrix() -> None:
    assert Counting().encode([]).shape == (0, 2)


def test_long_text_warns() -> None:
    with pytest.warns(LongTextWarning, match=r"1 of 2 texts are longer than the encoder's 5 tokens"):
        Counting().encode(["a", "b b b b b b"])


def test_long_text_raises() -> None:
    with pytest.raises(DescriptionError, match=r'EncoderOptions\(long_text="chunk"\)'):
        Counting(long_text="error").encode(["b b b b b b"])


def test_long_text_is_chunked_and_averaged() -> None:
    counting = Counting(long_text="chunk")
    found = counting.encode(["a b c d e f g", "x"])
    assert sorted(text for batch in counting.batches for text in batch) == ["a b c", "d e f g", "x"]
    assert found[0].tolist() == [3.5, 1.0]


@pytest.mark.parametrize(
    "choice",
    [
        {"long_text": "cut"},
        {"batch_size": 0},
        {"dtype": torch.int8},
        {"dtype": "float16"},
        {"dtype": None},
        {"device": "nonsense"},
        {"device": "cuda:99"},
        {"device": "cpu:cpu"},
        {"device": 3.5},
    ],
)
def test_options_that_do_not_exist_are_refused(choice: dict[str, Any]) -> None:
    (name, value) = next(iter(choice.items()))
    with pytest.raises(ArgumentError, match=f"{name}.*{value}"):
        EncoderOptions(**choice)


def test_options_of_another_type_are_refused() -> None:
    with pytest.raises(ArgumentError, match="options must be an EncoderOptions"):
        SentenceTransformerEncoder("folder", options={"device": "cpu"})  # type: ignore[arg-type]


NO_SENTENCES = [
    ("one string", 'sequence of strings, such as .*found "one string"'),
    (None, "sequence of strings, such as .*found None"),
    ({"a": 1}, "sequence of strings"),
    ([1, 2], "sequence of strings"),
    (["a", None], "sequence of strings"),
    (["a", "half \ud800"], r"sentences\[1\] was decoded wrongly.*'half .ud800'"),
]


@pytest.mark.parametrize(("texts", "message"), NO_SENTENCES)
def test_sentences_that_are_no_strings_are_refused(texts: Any, message: str, tiny_clip: Path, tmp_path: Path) -> None:
    """Every encoder that needs no download."""
    encoders: list[Any] = [
        Counting(),
        OpenClipEncoder(f"local-dir:{tiny_clip}"),
        PrecomputedEncoder({"a": torch.ones(2)}, id="table"),
    ]
    for encoder in encoders:
        with pytest.raises(DescriptionError, match=message):
            encoder.encode(texts)


def test_transformers_refuse_sentences_that_are_no_strings(tmp_path: Path) -> None:
    _tiny_hf_clip(pytest.importorskip("transformers", reason="needs the extra 'hf'"), tmp_path)
    encoder = TransformersEncoder(tmp_path)
    for texts, message in NO_SENTENCES:
        with pytest.raises(DescriptionError, match=message):
            encoder.encode(texts)  # type: ignore[arg-type]


@pytest.mark.real_encoder
@pytest.mark.parametrize(("texts", "message"), NO_SENTENCES)
def test_minilm_refuses_sentences_that_are_no_strings(
    texts: Any, message: str, minilm: SentenceTransformerEncoder
) -> None:
    with pytest.raises(DescriptionError, match=message):
        minilm.encode(texts)


def test_open_clip_text_tower_equals_the_whole_model_bit_for_bit(tiny_clip: Path) -> None:
    encoder = OpenClipEncoder(f"local-dir:{tiny_clip}")
    whole = open_clip.create_model(f"local-dir:{tiny_clip}", require_pretrained=True).eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{tiny_clip}")(SENTENCES)
    with torch.inference_mode():
        assert torch.equal(encoder.encode_tokens(tokens), whole.encode_text(tokens))
        assert torch.allclose(encoder.encode(SENTENCES), whole.encode_text(tokens), atol=1e-5)
    assert encoder._tower.visual is None
    assert isinstance(encoder, TextEncoder)
    assert (encoder.embed_dim, encoder.context_length) == (32, 77)
    assert encoder.revision.startswith("sha256:")
    assert encoder.id == f"local-dir:{tiny_clip.name}"


def test_custom_text_towers_equal_the_whole_model(tiny_clip: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_clip / "open_clip_config.json").read_text())
    model = open_clip.CustomTextCLIP(**config["model_cfg"]).eval()
    config["model_cfg"]["custom_text"] = True
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    encoder = OpenClipEncoder(f"local-dir:{tmp_path}")
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(SENTENCES)
    with torch.inference_mode():
        assert torch.equal(encoder.encode_tokens(tokens), model.encode_text(tokens))


def test_open_clip_is_deterministic_and_takes_other_dtypes(tiny_clip: Path) -> None:
    encoder = OpenClipEncoder(f"local-dir:{tiny_clip}")
    assert torch.equal(encoder.encode(SENTENCES), encoder.encode(SENTENCES))
    half = OpenClipEncoder(f"local-dir:{tiny_clip}", options=EncoderOptions(dtype=torch.bfloat16)).encode(SENTENCES)
    assert half.dtype == torch.float32
    assert torch.allclose(half, encoder.encode(SENTENCES), atol=0.1)


def test_open_clip_treats_long_texts_as_asked(tiny_clip: Path) -> None:
    model = f"local-dir:{tiny_clip}"
    with pytest.warns(LongTextWarning):
        cut = OpenClipEncoder(model).encode([LONG])
    whole = OpenClipEncoder(model, options=EncoderOptions(long_text="chunk")).encode([LONG])
    assert cut.shape == whole.shape == (1, 32)
    assert not torch.equal(cut, whole)
    with pytest.raises(DescriptionError):
        OpenClipEncoder(model, options=EncoderOptions(long_text="error")).encode([LONG])


@pytest.mark.parametrize("damage", ["missing weight", "spare weight", "no file", "cut", "shape"])
def test_incomplete_open_clip_weights_are_refused(tiny_clip: Path, tmp_path: Path, damage: str) -> None:
    weights = tmp_path / "open_clip_model.safetensors"
    shutil.copytree(tiny_clip, tmp_path, dirs_exist_ok=True)
    state = load_file(weights)
    if damage == "missing weight":
        del state["ln_final.weight"]
    elif damage == "spare weight":
        state["surprise"] = torch.ones(1)
    elif damage == "shape":
        state["ln_final.weight"] = torch.ones(3)
    save_file(state, weights)
    if damage == "no file":
        weights.unlink()
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(EmbeddingError):
        OpenClipEncoder(f"local-dir:{tmp_path}")


def test_open_clip_from_the_hub_is_pinned(
    server: HubServer, settings: HubSettings, tiny_clip: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = {path.name: path.read_bytes() for path in tiny_clip.iterdir()}
    commit = server.commit("owner/clip", files)
    encoder = OpenClipEncoder("hf-hub:owner/clip", hub=settings)
    assert (encoder.id, encoder.revision) == ("hf-hub:owner/clip", commit)
    assert f"revision='{commit}'" in caplog.text
    server.commit("owner/clip", {"open_clip_model.safetensors": b"something else"})
    again = OpenClipEncoder("hf-hub:owner/clip", revision=commit, hub=settings)
    assert torch.equal(again.encode(SENTENCES), encoder.encode(SENTENCES))


def test_open_clip_names_are_checked(settings: HubSettings) -> None:
    with pytest.raises(EmbeddingError, match="ARCHITECTURE/TAG"):
        OpenClipEncoder("NoSuch/tag")
    with pytest.raises(EmbeddingError, match="not the config"):
        OpenClipEncoder("local-dir:/no/such/folder")
    with pytest.raises(HubError, match="no such repository"):
        OpenClipEncoder("ViT-B-16/openai", hub=settings)


def test_the_pinned_repositories_are_those_of_open_clip() -> None:
    for model, pin in PINS.items():
        config, found, file = known_to_open_clip(model)
        assert (found, file, config["quick_gelu"]) == (pin.repo, "", True)


def test_transformers_encoder_equals_the_model(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra 'hf'")
    _tiny_hf_clip(transformers, tmp_path)
    encoder = TransformersEncoder(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    model = transformers.CLIPTextModelWithProjection.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        expected = model(**tokenizer(["a b", "b"], padding=True, return_tensors="pt")).text_embeds
    assert torch.allclose(encoder.encode(["a b", "b"]), expected, atol=1e-6)
    assert isinstance(encoder, TextEncoder)
    assert encoder.revision.startswith("sha256:")
    with pytest.warns(LongTextWarning):
        encoder.encode(["a " * 30])


def test_transformers_weights_that_are_missing_are_refused(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra 'hf'")
    _tiny_hf_clip(transformers, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["text_projection.weight"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(EmbeddingError, match="fill at random"):
        TransformersEncoder(tmp_path)


def _tiny_hf_clip(transformers: Any, folder: Path) -> None:
    """Write a tiny CLIP text model with a vocabulary of a handful of words."""
    words = ["<|startoftext|>", "<|endoftext|>", "a", "b", "a</w>", "b</w>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.save_pretrained(folder)
    config = transformers.CLIPTextConfig(
        vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=12, projection_dim=8, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    transformers.CLIPTextModelWithProjection(config).save_pretrained(folder)


def _tiny_sibling(transformers: Any, folder: Path, kind: str) -> None:
    """Write a tiny text tower of another kind, with a tokenizer of three words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    plain = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1, "<unk>": 2, "a": 3, "b": 4}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 1)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    ).save_pretrained(folder)
    sizes = {"vocab_size": 8, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2, "max_position_embeddings": 12, "pad_token_id": 0, "eos_token_id": 1}  # fmt: skip
    if kind == "MetaClip2":
        config = transformers.MetaClip2TextConfig(**sizes, projection_dim=8, bos_token_id=2)
        transformers.MetaClip2TextModelWithProjection(config).save_pretrained(folder)
    else:
        config = getattr(transformers, f"{kind}TextConfig")(**sizes, projection_size=16, bos_token_id=2)
        getattr(transformers, f"{kind}TextModel")(config).save_pretrained(folder)


@pytest.mark.parametrize("kind", ["Siglip", "Siglip2", "MetaClip2"])
def test_siglip_and_metaclip_towers_equal_their_models(tmp_path: Path, kind: str) -> None:
    """SigLIP sees its padding, so all texts are padded to the context; the others may be padded to the longest."""
    transformers = pytest.importorskip("transformers", reason="needs the extra 'hf'")
    _tiny_sibling(transformers, tmp_path, kind)
    encoder = TransformersEncoder(tmp_path)
    name = "MetaClip2TextModelWithProjection" if kind == "MetaClip2" else f"{kind}TextModel"
    model = getattr(transformers, name).from_pretrained(tmp_path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    tokens = tokenizer(["a b", "b"], padding="max_length", max_length=12, return_tensors="pt")
    siglip = kind != "MetaClip2"
    given = (
        {"input_ids": tokens["input_ids"]} if siglip else {key: tokens[key] for key in ("input_ids", "attention_mask")}
    )
    with torch.inference_mode():
        output = model(**given)
    expected = output.pooler_output if siglip else output.text_embeds
    assert torch.allclose(encoder.encode(["a b", "b"]), expected, atol=1e-6)
    assert torch.allclose(encoder.encode(["b"]), expected[1:], atol=1e-6)
    assert (encoder.embed_dim, encoder.context_length) == (16 if siglip else 8, 12)
    assert encoder.revision == f"sha256:{encoder.weights_sha256}"
    with pytest.warns(LongTextWarning):
        encoder.encode(["a " * 30])


def test_transformers_encoder_from_the_hub_is_pinned(
    server: HubServer, settings: HubSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra 'hf'")
    folder = tmp_path / "model"
    folder.mkdir()
    _tiny_hf_clip(transformers, folder)
    commit = server.commit("owner/text", {path.name: path.read_bytes() for path in folder.iterdir()})
    encoder = TransformersEncoder("owner/text", hub=settings)
    assert (encoder.id, encoder.revision) == ("owner/text", commit)
    assert f"owner/text at {commit}, weights sha256 {encoder.weights_sha256}" in caplog.text
    server.commit("owner/text", {"model.safetensors": b"something else"})
    server.requests.clear()
    again = TransformersEncoder("owner/text", revision=commit, hub=settings)
    assert torch.equal(again.encode(["a b"]), encoder.encode(["a b"]))
    assert server.requests == []
    with pytest.raises(HubError, match="offline mode forbids"):
        TransformersEncoder("owner/other", hub=dataclasses.replace(settings, offline=True))


def test_precomputed_encoder_looks_sentences_up_in_its_table() -> None:
    encoder = PrecomputedEncoder({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 4.0])}, id="table")
    assert isinstance(encoder, TextEncoder)
    assert encoder.encode(["b", "a", "b"]).tolist() == [[3, 4], [1, 2], [3, 4]]
    with pytest.raises(EmbeddingError, match="lacks 1 of 2"):
        encoder.encode(["a", "z"])
    with pytest.raises(EmbeddingError):
        PrecomputedEncoder({}, id="table")
    with pytest.raises(EmbeddingError):
        PrecomputedEncoder({"a": torch.ones(2), "b": torch.ones(3)}, id="table")


def test_missing_extra_names_the_install_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match=r'pip install "resilient-heads\[minilm\]"'):
        SentenceTransformerEncoder(tmp_path)


def test_short_encoder_names_are_resolved_and_unknown_ones_refused() -> None:
    assert encoder_id("minilm-l6") == "all-MiniLM-L6-v2"
    with pytest.raises(EmbeddingError, match="No encoder is named"):
        named_encoder("word2vec")


# The twenty superclasses of CIFAR-100 (Krizhevsky, 2009), five classes each.
SUPERCLASSES = """
beaver dolphin otter seal whale | aquarium_fish flatfish ray shark trout | orchid poppy rose sunflower tulip |
bottle bowl can cup plate | apple mushroom orange pear sweet_pepper | clock keyboard lamp telephone television |
bed chair couch table wardrobe | bee beetle butterfly caterpillar cockroach | bear leopard lion tiger wolf |
bridge castle house road skyscraper | cloud forest mountain plain sea | camel cattle chimpanzee elephant kangaroo |
fox porcupine possum raccoon skunk | crab lobster snail spider worm | baby boy girl man woman |
crocodile dinosaur lizard snake turtle | hamster mouse rabbit shrew squirrel |
maple_tree oak_tree palm_tree pine_tree willow_tree | bicycle bus motorcycle pickup_truck train |
lawn_mower rocket streetcar tank tractor
"""


def nearest(vectors: Tensor) -> tuple[dict[str, str], int]:
    """Return each class's nearest neighbour, and how many of them share its superclass (4 by chance)."""
    names = [name.replace(" ", "_") for name in _cifar100()]
    group = {name: row for row, members in enumerate(SUPERCLASSES.split("|")) for name in members.split()}
    assert set(group) == set(names)
    unit = torch.nn.functional.normalize(vectors.double(), dim=1)
    found = (unit @ unit.T).fill_diagonal_(-1).argmax(dim=1)
    neighbour = {name: names[int(row)] for name, row in zip(names, found, strict=True)}
    return neighbour, sum(group[name] == group[other] for name, other in neighbour.items())


@pytest.mark.real_encoder
def test_minilm_puts_similar_classes_close_together(minilm: SentenceTransformerEncoder) -> None:
    """56 of 100 bare names have their nearest neighbour in the same superclass, and 73 classes by description."""
    by_name, of_names = nearest(minilm.encode([name.replace("_", " ") for name in _cifar100()]))
    by_text, of_texts = nearest(load_bundled("cifar100").vectors)
    assert of_names >= 50
    assert of_texts >= 65
    alike = "chair couch, crab lobster, porcupine possum, bicycle motorcycle, poppy rose, lawn_mower tractor"
    for one, other in (pair.split() for pair in alike.split(", ")):
        for found in (by_name, by_text):
            assert (found[one], found[other]) == (other, one)
    # A description resolves an ambiguous name: this mouse is an animal, this apple a fruit.
    assert (by_name["mouse"], by_text["mouse"]) == ("keyboard", "hamster")
    assert (by_name["apple"], by_text["apple"]) == ("leopard", "pear")
    shuffled = load_bundled("cifar100").vectors[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    assert nearest(shuffled)[1] < 20
    assert (minilm.embed_dim, minilm.context_length) == (384, 256)
    assert minilm.revision.startswith("sha256:53aa5117")


@pytest.mark.real_encoder
def test_minilm_detects_long_texts(minilm: SentenceTransformerEncoder) -> None:
    with pytest.warns(LongTextWarning):
        minilm.encode(["word " * 400])
    assert torch.equal(minilm.encode(SENTENCES), minilm.encode(SENTENCES))


def _cifar100() -> tuple[str, ...]:
    return load_descriptions("cifar100").class_names


def test_a_default_encoder_without_a_download_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("open_clip")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(HubError, match=r"Without a download: pass encoder=rh\.text\.PrecomputedEncoder"):
        rh.TextGuidedHead.from_descriptions(["cat"], {"cat": ["It purrs."]})
