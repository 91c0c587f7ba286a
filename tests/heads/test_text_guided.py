import copy
import io
import math
import pickle
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from helpers.heads import randomized
from resilient_heads.errors import ArgumentError, DescriptionError, EmbeddingError, HubError
from resilient_heads.heads.swap.wrap import fuse
from resilient_heads.heads.text_guided import TextGuidedHead
from resilient_heads.text.embeddings import ClassEmbeddings, Provenance
from resilient_heads.text.encoders.precomputed import PrecomputedEncoder

F, C, E = 20, 9, 12
KINDS = ["cosine", "linear", "cosine conv", "linear conv", "fused cosine", "fused cosine conv"]


def embeddings(classes: int = C, dimensions: int = E, dtype: torch.dtype = torch.float32) -> ClassEmbeddings:
    vectors = torch.randn(classes, dimensions, dtype=dtype) * torch.linspace(0.5, 3, classes, dtype=dtype)[:, None]
    names = tuple(f"name {i}" for i in range(classes))
    return ClassEmbeddings(vectors, names, Provenance(encoder="toy"))


def make(kind: str) -> nn.Module:
    head = randomized(TextGuidedHead(F, embeddings(), normalize="cosine" in kind, conv="conv" in kind))
    return (fuse(head) if "fused" in kind else head).eval()


def random_input(kind: str, batch: int = 4) -> Tensor:
    return torch.randn(batch, F, 3, 2) if "conv" in kind else torch.randn(batch, F)


def formula(head: TextGuidedHead, x: Tensor) -> np.ndarray:
    """Logits of features (..., F) in float64, from the published definition."""
    state = {name: tensor.double().numpy() for name, tensor in head.state_dict().items()}
    latent, projection = (state[f"{name}.weight"].reshape(-1, n) for name, n in (("latent", F), ("projection", E)))
    z = x.double().numpy() @ latent.T + state.get("latent.bias", 0.0)
    if not head.normalize:
        return z @ projection.T
    return np.exp(state["logit_scale"]) * (z / np.sqrt((z**2).sum(axis=-1, keepdims=True))) @ projection.T


@pytest.mark.parametrize("shape", [(F,), (4, F), (2, 3, F), (0, F)])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_forward_is_the_published_formula(shape: tuple[int, ...], normalize: bool, bias: bool) -> None:
    head = randomized(TextGuidedHead(F, embeddings(), normalize=normalize, bias=bias, dtype=torch.float64))
    x = torch.randn(shape, dtype=torch.float64)
    logits = head(x)
    assert logits.shape == (*shape[:-1], C)
    np.testing.assert_allclose(logits.detach().numpy(), formula(head, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("normalize", [False, True])
def test_conv_form_is_the_formula_at_each_location(normalize: bool) -> None:
    head = randomized(TextGuidedHead(F, embeddings(), normalize=normalize, conv=True, dtype=torch.float64))
    x = torch.randn(2, F, 3, 5, dtype=torch.float64)
    logits = head(x)
    assert logits.shape == (2, C, 3, 5)
    expected = formula(head, x.permute(0, 2, 3, 1))
    np.testing.assert_allclose(logits.permute(0, 2, 3, 1).detach().numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rows_start_at_the_text(conv: bool, dtype: torch.dtype) -> None:
    text = embeddings(dtype=torch.float64)
    raw = TextGuidedHead(F, text, normalize=False, conv=conv, dtype=dtype).projection.weight.flatten(1)
    unit = TextGuidedHead(F, text, conv=conv, dtype=dtype).projection.weight.flatten(1)
    assert raw.dtype == unit.dtype == dtype
    assert torch.equal(raw, text.vectors.to(dtype))
    rows = text.vectors.numpy() / np.linalg.norm(text.vectors.numpy(), axis=1, keepdims=True)
    torch.testing.assert_close(unit.double(), torch.from_numpy(rows), rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_random_rows_have_unit_norm_only_where_normalised() -> None:
    unit = TextGuidedHead(F, (C, E)).projection.weight.norm(dim=1)
    assert torch.allclose(unit, torch.ones(C))
    assert TextGuidedHead(F, (C, E), normalize=False).projection.weight.norm(dim=1).sub(1).abs().min() > 1e-3


def test_head_does_not_share_memory_with_the_embeddings() -> None:
    text = embeddings()
    head = TextGuidedHead(F, text)
    started = head.projection.weight.detach().clone()
    text.vectors.zero_()
    head.reset_parameters()
    assert torch.equal(head.projection.weight, started)


def test_logit_scale_starts_at_the_published_value() -> None:
    scale = TextGuidedHead(F, embeddings(), dtype=torch.float64).logit_scale
    assert scale.shape == (1,)
    assert scale.item() == pytest.approx(math.log(1 / 0.07), abs=1e-15)
    assert isinstance(scale, nn.Parameter)
    assert TextGuidedHead(F, embeddings(), normalize=False).logit_scale is None


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("conv", [False, True])
def test_state_dict_holds_tensors_under_these_keys_only(normalize: bool, bias: bool, conv: bool) -> None:
    state = TextGuidedHead(F, embeddings(), normalize=normalize, bias=bias, conv=conv).state_dict()
    expected = {"latent.weight", "projection.weight"}
    expected |= {"latent.bias"} if bias else set()
    expected |= {"logit_scale"} if normalize else set()
    assert set(state) == expected
    assert all(isinstance(value, Tensor) for value in state.values())


def test_sizes_and_names() -> None:
    head = TextGuidedHead(F, embeddings())
    assert (head.in_features, head.embed_dim, head.num_classes, head.out_features) == (F, E, C, C)
    assert head.class_names == tuple(f"name {i}" for i in range(C))
    assert not head.is_conv
    assert TextGuidedHead(F, torch.eye(3)).class_names == ("class 0", "class 1", "class 2")
    nameless = TextGuidedHead(F, (C, E), conv=True)
    assert nameless.class_names is None
    assert nameless.is_conv
    assert nameless.in_features == F
    assert TextGuidedHead(None, (C, E)).in_features is None


@pytest.mark.parametrize(
    ("classes", "text"), [("embeddings", "text='toy'"), ("tensor", "text='unknown'"), ("sizes", "text=random")]
)
def test_repr_shows_sizes_kind_and_text(classes: str, text: str) -> None:
    given = {"embeddings": embeddings(), "tensor": torch.ones(C, E), "sizes": (C, E)}[classes]
    shown = TextGuidedHead(F, given, normalize=False).extra_repr()
    assert shown == f"in_features={F}, embed_dim={E}, num_classes={C}, normalize=False, {text}"


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("conv", [False, True])
def test_reset_parameters_starts_anew(normalize: bool, conv: bool) -> None:
    head = TextGuidedHead(F, embeddings(), normalize=normalize, conv=conv)
    started = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    randomized(head).reset_parameters()
    assert torch.equal(head.projection.weight, started["projection.weight"])
    if normalize:
        assert torch.equal(head.logit_scale, started["logit_scale"])
    assert not torch.equal(head.latent.weight, started["latent.weight"])
    assert head.latent.weight.abs().max() <= 1 / math.sqrt(F)
    assert all(p.requires_grad and p.grad_fn is None for p in head.parameters())


def test_reset_parameters_restores_the_text_after_to_empty() -> None:
    text = embeddings()
    with torch.device("meta"):
        head = TextGuidedHead(F, text)
    assert {p.device.type for p in head.parameters()} == {"meta"}
    with torch.no_grad():
        for parameter in head.to_empty(device="cpu").parameters():
            parameter.fill_(math.nan)
    head.reset_parameters()
    assert torch.equal(head.projection.weight, TextGuidedHead(F, text).projection.weight)
    assert head(torch.randn(2, F)).isfinite().all()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_param_groups_hold_each_parameter_once_and_spare_bias_and_scale(normalize: bool, bias: bool) -> None:
    head = TextGuidedHead(F, embeddings(), normalize=normalize, bias=bias)
    groups = head.param_groups(0.1)
    decay = [(id(p), group["weight_decay"]) for group in groups for p in group["params"]]
    names = {id(p): name for name, p in head.named_parameters()}
    assert sorted(names[key] for key, _ in decay) == sorted(names.values())
    assert {names[key]: value for key, value in decay} == {
        name: 0.1 if name.endswith("weight") else 0.0 for name in names.values()
    }
    torch.optim.AdamW(groups, lr=1e-3)


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_fault_sites_are_the_heads_tensors_in_order(normalize: bool, conv: bool) -> None:
    head = randomized(TextGuidedHead(F, embeddings(), normalize=normalize, conv=conv))
    x = random_input("conv" if conv else "")
    seen: dict[str, Tensor] = {}
    for name in head.fault_sites:
        head.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.__setitem__(name, output)
        )
    logits = head(x)
    assert tuple(seen) == head.fault_sites
    assert torch.equal(seen[head.fault_sites[-1]], logits)
    if normalize:
        assert torch.allclose(seen["unit"].norm(dim=1), torch.ones(()))
        assert torch.equal(seen["projection"] * head.logit_scale.exp(), logits)


@pytest.mark.parametrize("normalize", [False, True])
def test_gradients_reach_every_parameter_and_the_features(normalize: bool) -> None:
    head = TextGuidedHead(F, embeddings(), normalize=normalize)
    x = torch.randn(4, F, requires_grad=True)
    nn.functional.cross_entropy(head(x), torch.arange(4)).backward()
    for name, tensor in [("x", x), *head.named_parameters()]:
        assert tensor.grad is not None, name
        assert tensor.grad.isfinite().all(), name
        assert tensor.grad.abs().sum() > 0, name


def test_gradients_are_those_of_finite_differences() -> None:
    head = randomized(TextGuidedHead(3, (4, 5), dtype=torch.float64))
    parameters = dict(head.named_parameters())
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def logits(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(head, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(logits, (x, *parameters.values()))


def _pickled(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("copied", [copy.deepcopy, _pickled])
def test_copies_give_the_same_bits(kind: str, copied: Callable[[nn.Module], nn.Module]) -> None:
    module, x = make(kind), random_input(kind)
    twin = copied(module)
    assert torch.equal(twin(x), module(x))
    assert twin.class_names == module.class_names
    assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in module.parameters()}


def test_a_copy_can_still_be_reset_to_its_text() -> None:
    head = TextGuidedHead(F, embeddings())
    for copied in (copy.deepcopy(head), _pickled(head)):
        randomized(copied).reset_parameters()
        assert torch.equal(copied.projection.weight, head.projection.weight)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("through", ["torch", "safetensors"])
def test_state_dict_round_trip(kind: str, through: str) -> None:
    module, x = make(kind), random_input(kind)
    if through == "torch":
        buffer = io.BytesIO()
        torch.save(module.state_dict(), buffer)
        buffer.seek(0)
        state = torch.load(buffer, weights_only=True)
    else:
        state = safetensors.torch.load(safetensors.torch.save(module.state_dict()))
    fresh = make(kind)
    assert not torch.equal(fresh(x), module(x))
    fresh.load_state_dict(state, strict=True)
    assert torch.equal(fresh(x), module(x))


@pytest.mark.parametrize("kind", KINDS)
def test_symbolic_trace(kind: str) -> None:
    module = make(kind)
    traced = torch.fx.symbolic_trace(module)
    for batch in (1, 5):
        x = random_input(kind, batch)
        assert torch.equal(traced(x), module(x))


@pytest.mark.parametrize("kind", KINDS)
def test_export_with_any_batch_size(kind: str) -> None:
    module = make(kind)
    program = torch.export.export(module, (random_input(kind),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for batch in (2, 7):
        x = random_input(kind, batch)
        torch.testing.assert_close(program.module()(x), module(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("kind", KINDS)
def test_torchscript_trace(kind: str) -> None:
    module = make(kind)
    traced = torch.jit.trace(module, random_input(kind))
    x = random_input(kind, 7)
    assert torch.equal(traced(x), module(x))


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_to_one_graph(kind: str) -> None:
    module, x = make(kind), random_input(kind)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), module(x))


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_gives_bfloat16_logits(kind: str) -> None:
    module, x = make(kind), random_input(kind)
    with torch.autocast("cpu", torch.bfloat16):
        logits = module(x)
    assert logits.dtype == torch.bfloat16
    exact = module(x)
    assert (logits - exact).abs().max() < 0.03 * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_have_the_dtype_of_the_head(kind: str, dtype: torch.dtype) -> None:
    assert make(kind).to(dtype)(random_input(kind).to(dtype)).dtype == dtype


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_open_features_are_set_by_the_first_batch(conv: bool, dtype: torch.dtype) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        head = TextGuidedHead(None, embeddings(), conv=conv, dtype=dtype)
        assert head.in_features is None
        assert "in_features=None" in repr(head)
        head.reset_parameters()
        logits = head(random_input("conv" if conv else "").to(dtype))
    assert [str(warning.message) for warning in caught] == []
    assert logits.dtype == dtype
    assert head.in_features == F
    assert type(head.latent) is (nn.Conv2d if conv else nn.Linear)
    assert head.latent.weight.dtype == dtype
    text = TextGuidedHead(F, embeddings(), conv=conv, dtype=dtype)
    assert head.state_dict().keys() == text.state_dict().keys()
    assert torch.allclose(head.projection.weight.flatten(1).norm(dim=1), torch.ones((), dtype=dtype))


def test_open_features_are_set_by_a_state_dict() -> None:
    known, head = make("cosine"), TextGuidedHead(None, embeddings())
    head.load_state_dict(known.state_dict(), strict=True)
    x = random_input("cosine")
    assert torch.equal(head(x), known(x))
    assert head.in_features == F


@pytest.mark.parametrize("in_features", [0, -3, 2.5, True])
def test_in_features_must_be_a_positive_integer(in_features: Any) -> None:
    with pytest.raises(ArgumentError, match="in_features must be a whole number of at least 1"):
        TextGuidedHead(in_features, (C, E))


@pytest.mark.parametrize("classes", [(C,), (C, E, 1), (0, E), (C, -1), (C, 2.0), (True, E), [C, E], C, None])
def test_sizes_must_be_two_positive_integers(classes: Any) -> None:
    with pytest.raises(EmbeddingError, match=r"classes must be ClassEmbeddings, a \(C, E\) tensor, or two positive"):
        TextGuidedHead(F, classes)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (torch.ones(C, E, 1), r"shape \(classes, dimensions\)"),
        (torch.ones(C, E, dtype=torch.int64), r"dense floating-point tensor .*found dtype torch.int64"),
        (torch.ones(C, E).index_fill(0, torch.tensor(2), math.nan), r"class 2 \('class 2'\) contains NaN or Inf"),
        (torch.ones(C, E).index_fill(0, torch.tensor(2), math.inf), r"class 2 \('class 2'\) contains NaN or Inf"),
        (torch.ones(C, E).index_fill(0, torch.tensor(3), 0.0), r"class 3 \('class 3'\) is all zeros"),
        (torch.ones(0, E), "one non-empty vector for each class"),
    ],
)
def test_unusable_vectors_are_refused(vectors: Tensor, message: str) -> None:
    with pytest.raises(EmbeddingError, match=message):
        TextGuidedHead(F, vectors)


def test_the_number_of_names_must_match_the_vectors() -> None:
    with pytest.raises(EmbeddingError, match=r"2 class names for \(3, 4\) vectors; expected one"):
        ClassEmbeddings(torch.ones(3, 4), ("a", "b"))


TABLE = PrecomputedEncoder(
    {
        "barks": torch.tensor([3.0, 0.0]),
        "wags its tail": torch.tensor([0.0, 2.0]),
        "meows": torch.tensor([0.0, -5.0]),
        "a photo of a dog": torch.tensor([6.0, 8.0]),
        "a photo of a hot dog": torch.tensor([-6.0, 8.0]),
    },
    id="table",
    revision="one",
)
NAMES = ["dog", "cat"]
BY_NAME = {"cat": ["meows"], "dog": ["barks", "wags its tail"]}


def rows(names: Sequence[str], descriptions: object, **options: object) -> list[list[float]]:
    """Return the raw rows that the constructor computes."""
    head = TextGuidedHead.from_descriptions(names, descriptions, encoder=TABLE, normalize=False, **options)
    return [pytest.approx(row) for row in head.projection.weight.tolist()]


def test_rows_are_means_of_unit_vectors() -> None:
    assert rows(NAMES, [["barks", "wags its tail"], ["meows"]]) == [[0.5, 0.5], [0.0, -1.0]]


def test_a_mapping_is_matched_by_name() -> None:
    assert rows(NAMES, BY_NAME) == [[0.5, 0.5], [0.0, -1.0]]
    assert rows(["Cat", "dog"], BY_NAME) == [[0.0, -1.0], [0.5, 0.5]]


def test_templates_replace_or_extend_descriptions() -> None:
    photo = ("a photo of a {}",)
    assert rows(["dog", "hot_dog"], None, templates=photo) == [[0.6, 0.8], [-0.6, 0.8]]
    assert rows(["dog"], {"dog": ["barks"]}, templates=photo) == [[0.8, 0.4]]


def test_from_descriptions_normalises_the_mean_and_records_where_it_came_from() -> None:
    head = TextGuidedHead.from_descriptions(NAMES, BY_NAME, encoder=TABLE)
    half = math.sqrt(0.5)
    assert [pytest.approx(row) for row in head.projection.weight.tolist()] == [[half, half], [0.0, -1.0]]
    assert head.normalize
    assert head.in_features is None
    assert head.class_names == ("dog", "cat")
    assert head.provenance is not None
    assert (head.provenance.encoder, head.provenance.encoder_revision) == ("table", "one")
    assert "text='table'" in repr(head)
    ready = TextGuidedHead.from_descriptions(NAMES, BY_NAME, encoder=TABLE, in_features=F)
    assert ready(torch.ones(3, F)).shape == (3, 2)


def test_from_descriptions_builds_each_form() -> None:
    for bias, conv in ((False, False), (True, True)):
        head = TextGuidedHead.from_descriptions(NAMES, BY_NAME, encoder=TABLE, in_features=F, bias=bias, conv=conv)
        assert (head.latent.bias is not None, head.is_conv) == (bias, conv)


def test_from_descriptions_refuses_what_does_not_match() -> None:
    with pytest.raises(DescriptionError, match="No description matches 1 of 2 classes"):
        TextGuidedHead.from_descriptions(["dog", "bird"], BY_NAME, encoder=TABLE)
    with pytest.raises(DescriptionError, match=r"templates=\(\"a photo of a \{\}\",\)"):
        TextGuidedHead.from_descriptions(NAMES, None, encoder=TABLE)
    with pytest.raises(EmbeddingError, match="lacks 1 of 1 sentences, first 'quacks'"):
        TextGuidedHead.from_descriptions(["duck"], {"duck": ["quacks"]}, encoder=TABLE)


def test_default_encoder_without_its_weights_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from resilient_heads.text.encoders import openclip_source

    def offline(repo: str, *args: object, **options: object) -> Path:
        raise HubError(f"{repo} could not be downloaded: it is not in the cache.")

    monkeypatch.setattr(openclip_source, "fetch_snapshot", offline)
    with pytest.raises(HubError, match=r"patch16_clip_224\.openai could not be downloaded"):
        TextGuidedHead.from_descriptions(NAMES, BY_NAME)
