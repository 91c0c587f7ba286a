"""Every kind of layer as a fault site, from the search to trials."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import resilient_heads as rh
from resilient_heads.errors import FaultError, InjectionError
from resilient_heads.injection.sites.find import find_sites


class Chain(nn.Module):
    """One layer, and a linear layer on a part of its output that a test chooses."""

    def __init__(self, layer: nn.Module, features: int, use: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer = layer
        self.fc = nn.Linear(features, 3)
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.use(self.layer, x))


class OwnConv(nn.Conv1d):
    """A user's subclass."""


def pixels(layer: nn.Module, x: Tensor) -> Tensor:
    return torch.relu(layer(x)).flatten(2).mean(dim=2)


def mean_of_tokens(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x).mean(dim=1)


def output(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x)


def last_step(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x)[0][:, -1]


def last_step_in_time(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x.transpose(0, 1))[0][-1]


def hidden(layer: nn.Module, x: Tensor) -> Tensor:
    state = layer(x)[1]
    return (state[0] if isinstance(state, tuple) else state)[-1]


def both_states(layer: nn.Module, x: Tensor) -> Tensor:
    return torch.cat(layer(x)[1], dim=2)[-1]


def cells(layer: nn.Module, x: Tensor) -> Tensor:
    state = None
    for step in x.unbind(dim=1):
        state = layer(step, state)
    return state[0] if isinstance(state, tuple) else state


def lazily(layer: nn.Module, *shape: int) -> nn.Module:
    layer(torch.randn(shape))
    return layer


TOKENS = (20, (7,))
# layer, features, use, shape of an image or (vocabulary, shape), and the sites: name, dimension of images, shape
KINDS: dict[str, tuple[nn.Module, int, Callable[..., Tensor], tuple, list[tuple[str, int, tuple[int, ...]]]]] = {
    "Conv1d": (nn.Conv1d(3, 6, 5), 6, pixels, (3, 16), [("layer", 0, (6, 12))]),
    "Conv3d": (nn.Conv3d(3, 6, 2), 6, pixels, (3, 3, 4, 5), [("layer", 0, (6, 2, 3, 4))]),
    "ConvTranspose1d": (nn.ConvTranspose1d(3, 6, 2), 6, pixels, (3, 4), [("layer", 0, (6, 5))]),
    "ConvTranspose2d": (nn.ConvTranspose2d(3, 6, 2), 6, pixels, (3, 4, 4), [("layer", 0, (6, 5, 5))]),
    "ConvTranspose3d": (nn.ConvTranspose3d(3, 6, 2), 6, pixels, (3, 2, 2, 2), [("layer", 0, (6, 3, 3, 3))]),
    "a subclass": (OwnConv(3, 6, 5), 6, pixels, (3, 16), [("layer", 0, (6, 12))]),
    "a lazy layer that ran": (lazily(nn.LazyConv1d(6, 5), 1, 3, 16), 6, pixels, (3, 16), [("layer", 0, (6, 12))]),
    "Embedding": (nn.Embedding(20, 8), 8, mean_of_tokens, TOKENS, [("layer", 0, (7, 8))]),
    "EmbeddingBag": (nn.EmbeddingBag(20, 8), 8, output, TOKENS, [("layer", 0, (8,))]),
    "Bilinear": (nn.Bilinear(4, 4, 6), 6, lambda layer, x: layer(x, x), (4,), [("layer", 0, (6,))]),
    "LSTM": (nn.LSTM(4, 6, batch_first=True), 6, last_step, (5, 4), [("layer", 0, (5, 6))]),
    "LSTM, time first": (nn.LSTM(4, 6), 6, last_step_in_time, (5, 4), [("layer", 1, (5, 6))]),
    "LSTM, hidden state": (nn.LSTM(4, 6, 2, batch_first=True), 6, hidden, (5, 4), [("layer[1][0]", 1, (2, 6))]),
    "LSTM, both states": (
        nn.LSTM(4, 6, batch_first=True),
        12,
        both_states,
        (5, 4),
        [("layer[1][0]", 1, (1, 6)), ("layer[1][1]", 1, (1, 6))],
    ),
    "GRU, both directions": (
        nn.GRU(4, 3, bidirectional=True, batch_first=True),
        6,
        last_step,
        (5, 4),
        [("layer", 0, (5, 6))],
    ),
    "RNN, hidden state": (nn.RNN(4, 6, batch_first=True), 6, hidden, (5, 4), [("layer[1]", 1, (1, 6))]),
    "RNNCell": (nn.RNNCell(4, 6), 6, cells, (2, 4), [("layer", 0, (6,)), ("layer@2", 0, (6,))]),
    "GRUCell": (nn.GRUCell(4, 6), 6, cells, (2, 4), [("layer", 0, (6,)), ("layer@2", 0, (6,))]),
    "LSTMCell": (
        nn.LSTMCell(4, 6),
        6,
        cells,
        (2, 4),
        [("layer", 0, (6,)), ("layer[1]", 0, (6,)), ("layer@2", 0, (6,))],
    ),
}


def made(name: str, count: int = 8) -> tuple[nn.Module, Tensor]:
    layer, features, use, shape, _ = KINDS[name]
    if isinstance(shape[-1], tuple):
        return Chain(layer, features, use).eval(), torch.randint(shape[0], (count, *shape[1]))
    return Chain(layer, features, use).eval(), torch.randn(count, *shape)


@pytest.mark.parametrize("name", KINDS)
def test_the_outputs_of_a_layer_are_sites(name: str) -> None:
    model, images = made(name)
    sites = find_sites(model, images)
    assert [(site.name, site.dim, site.shape) for site in sites.reached] == [*KINDS[name][4], ("fc", 0, (3,))]
    assert all(site.is_layer and site.module in ("layer", "fc") for site in sites.reached)
    for reason in sites.uninjectable.values():
        assert reason == "the model does not read this tensor of several that the module returns"


@pytest.mark.parametrize("name", KINDS)
def test_trials_of_both_engines_agree(name: str) -> None:
    model, images = made(name)
    labels = model(images).argmax(dim=1)
    runs = [
        rh.run_campaign(
            model, (images, labels), protocol="raw", trials_per_site=16, batch_size=8, engine=engine, progress=False
        )
        for engine in ("incremental", "full")
    ]
    assert [site.name for site in runs[0].sites] == [place[0] for place in KINDS[name][4]] + ["fc"]
    for column, values in runs[0].trials.columns.items():
        assert np.array_equal(values, runs[1].trials.columns[column], equal_nan=values.dtype.kind == "f"), column
    changed = runs[0].trials.before != runs[0].trials.after
    assert changed.all()
    first = runs[0].trials.where(runs[0].trials.site == 0)
    trial = int(np.argmax(first.outcome))
    repeated = rh.replay(runs[0], model, (images, labels), site=runs[0].sites[0].name, trial=trial)
    assert (repeated.neuron, repeated.after) == (first.neuron[trial], first.after[trial])
    for site in range(len(runs[0].sites)):  # a site that nothing read would have masked trials alone
        assert runs[0].trials.outcome[runs[0].trials.site == site].max() > 0


@pytest.mark.parametrize("tensor", ["layer[1][0]", "layer[1][1]"])
def test_a_fault_changes_the_tensor_that_its_site_names(tensor: str) -> None:
    model, images = made("LSTM, both states")
    seen = []
    model.fc.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].clone()))
    result = rh.run_campaign(
        model,
        (images, model(images).argmax(dim=1)),
        protocol="raw",
        trials_per_site=4,
        batch_size=4,
        layers=[tensor],
        engine="full",
        progress=False,
    )
    half = slice(0, 6) if tensor == "layer[1][0]" else slice(6, 12)
    assert [site.name for site in result.excluded] == [*({"layer[1][0]", "layer[1][1]"} - {tensor}), "fc"]
    seen.clear()
    rh.replay(result, model, (images, model(images).argmax(dim=1)), site=tensor, trial=0)
    golden, faulty = seen[-2:]
    columns = (golden != faulty).any(dim=0)
    assert columns[half].any()
    assert columns.sum() == columns[half].sum()


def test_an_embedding_of_positions_belongs_to_no_image() -> None:
    positions = nn.Embedding(7, 8)
    model = Chain(nn.Embedding(20, 8), 8, lambda layer, x: (layer(x) + positions(torch.arange(7))).mean(dim=1))
    model.positions = positions
    assert find_sites(model, torch.randint(20, (4, 7))).uninjectable == {
        "positions": "its output has no batch dimension"
    }


def test_rows_of_a_packed_sequence_depend_on_lengths_and_are_no_site() -> None:
    def packed(layer: nn.Module, x: Tensor) -> Tensor:
        sequence = pack_padded_sequence(x, torch.full((len(x),), 5), batch_first=True)
        rows, state = layer(sequence)
        return state[0][-1] + rows.data.sum()

    model = Chain(nn.LSTM(4, 6, batch_first=True), 6, packed)
    sites = find_sites(model, torch.randn(4, 5, 4))
    assert [site.name for site in sites.reached] == ["layer", "fc"]
    assert sites.named("layer").path == (1, 0)


def test_a_tensor_that_grows_with_the_longest_text_is_never_misread() -> None:
    def cut(layer: nn.Module, x: Tensor) -> Tensor:
        return layer(x[:, : int((x > 0).sum(dim=1).max())]).mean(dim=1)

    model, tokens = Chain(nn.Embedding(20, 8), 8, cut), torch.randint(1, 20, (8, 7))
    tokens[4:, 4:] = 0  # the first texts, by which sites are found, are long
    with torch.no_grad():
        labels = model(tokens).argmax(dim=1)
    assert find_sites(model, tokens[:3]).named("layer").shape == (7, 8)
    labels[:4] = (labels[:4] + 1) % 3  # only short texts are eligible
    expected = r"'layer' gave a tensor of shape \(2, 4, 8\).*the shape of one image was \(7, 8\).*padding"
    for engine in ("incremental", "full"):
        with pytest.raises(InjectionError, match=expected):
            rh.run_campaign(
                model,
                (tokens, labels),
                protocol="raw",
                trials_per_site=4,
                batch_size=2,
                engine=engine,
                progress=False,
                layers=["layer"],
            )


class Returns(nn.Linear):
    def __init__(self, wrap: Callable[[Tensor], object]) -> None:
        super().__init__(4, 4)
        self.wrap = wrap

    def forward(self, x: Tensor) -> object:  # type: ignore[override]
        return self.wrap(super().forward(x))


CONTAINERS: dict[str, tuple[Callable[[Tensor], object], Callable[[object], Tensor], tuple]] = {
    "a tuple": (lambda y: (y, None), lambda value: value[0], (0,)),
    "a dictionary": (lambda y: {"rows": y, "count": 3}, lambda value: value["rows"], ("rows",)),
    "a list in a tuple": (lambda y: (torch.arange(3), [y]), lambda value: value[1][0], (1, 0)),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_tensor_in_a_container_is_a_site(kind: str) -> None:
    wrap, unwrap, path = CONTAINERS[kind]
    model = Chain(Returns(wrap), 4, lambda layer, x: unwrap(layer(x)))
    sites = find_sites(model, torch.randn(4, 4))
    assert [(site.name, site.path) for site in sites.reached] == [("layer", path), ("fc", ())]


class Attention(nn.Module):
    def __init__(self, **options: object) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, **options)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        keys = x[..., : self.attention.kdim]
        x, _ = self.attention(x, keys, x[..., : self.attention.vdim])
        x, _ = self.attention(x, keys, x[..., : self.attention.vdim])
        return self.fc(x.mean(dim=1))


@pytest.mark.parametrize(("options", "products"), [({}, 3), ({"kdim": 3, "vdim": 2}, 3)])
def test_all_projections_of_an_attention_are_sites_in_every_run(options: dict, products: int) -> None:
    model, images = Attention(**options).eval(), torch.randn(8, 5, 4)
    names = ["attention", *(f"attention@{run}" for run in range(2, 2 * products + 1))]
    sites = find_sites(model, images)
    assert [site.name for site in sites.reached if site.module == "attention"] == names
    assert [site.name for site in sites.reached if site.module == "attention.out_proj"] == [
        "attention.out_proj",
        "attention.out_proj@2",
    ]
    assert sites.uninjectable == {}
    result = rh.run_campaign(
        model, (images, model(images).argmax(dim=1)), protocol="raw", trials_per_site=8, batch_size=4, progress=False
    )
    assert len(result.sites) == len(sites.reached)
    assert (result.trials.before != result.trials.after).all()


def test_conv1d_of_transformers_is_a_layer() -> None:
    utilities = pytest.importorskip("transformers.pytorch_utils", exc_type=ImportError)
    model = nn.Sequential(utilities.Conv1D(6, 4), nn.Linear(6, 2))
    assert [(site.name, site.is_layer) for site in find_sites(model, torch.randn(2, 4)).reached] == [
        ("0", True),
        ("1", True),
    ]


@pytest.mark.parametrize("layer", [nn.LazyConv1d(6, 5), nn.LazyConvTranspose2d(6, 2)])
def test_a_lazy_layer_that_never_ran_is_refused(layer: nn.Module) -> None:
    with pytest.raises(FaultError, match="lazy parameters without a size; run it once"):
        find_sites(nn.Sequential(layer), torch.randn(2, 3, 16))
