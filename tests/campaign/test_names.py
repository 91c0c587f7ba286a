"""Names of modules may hold any character: nothing is parsed out of a name, and every site keeps its own."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import resilient_heads as rh
from resilient_heads.errors import FaultError
from resilient_heads.injection.random.streams import stream_name
from resilient_heads.injection.sites.find import find_sites

NAMES = [
    "a b",
    "fc@2",
    "[0]",
    "fc[1]",
    "*",
    "f?",
    "fc*",
    "$x$",
    "a|b",
    "naïve層",
    "two\nlines",
    "tab\tand\x00nul",
    "quote'\"",
    "# 1",
    "_private",
    "--layers",
    "~",
    "\\n",
    "a,b;c",
    "\x1b[31mred",
    "<b>",
]


class Named(nn.Module):
    """Runs ``fc`` twice, then a layer of any name, then the classifier."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.add_module("fc", nn.Linear(4, 4))
        self.add_module(name, nn.Linear(4, 4))
        self.add_module("last", nn.Linear(4, 3))
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        fc, named, last = (self._modules[name] for name in ("fc", self.name, "last"))
        return last(named(fc(torch.tanh(fc(x)))))


def run(model: nn.Module, **options: object) -> tuple[rh.CampaignResult, tuple[Tensor, Tensor]]:
    images = torch.randn(8, 4)
    data = images, model(images).argmax(dim=1)
    settings = {"protocol": "raw", "trials_per_site": 8, "batch_size": 4, "progress": False, **options}
    return rh.run_campaign(model, data, **settings), data


@pytest.mark.parametrize("name", NAMES)
def test_a_campaign_with_any_name(name: str, tmp_path: Path) -> None:
    model = Named(name).eval()
    second = "fc@2~" if name == "fc@2" else "fc@2"
    result, data = run(model, output=tmp_path / "run")
    loaded = rh.CampaignResult.load(tmp_path / "run")
    assert [site.name for site in loaded.sites] == ["fc", second, name, "last"]
    assert [(site.site.module, site.site.call) for site in loaded.sites] == [
        ("fc", 0),
        ("fc", 1),
        (name, 0),
        ("last", 0),
    ]
    assert loaded.sites == result.sites
    assert [layer.name for layer in loaded.by_layer()] == ["fc", second, name, "last"]
    for position, site in enumerate(result.sites):
        row = np.flatnonzero(result.trials.site == position)[3]
        again = rh.replay(loaded, model, data, site=site.name, trial=3)
        assert (again.neuron, again.after) == (result.trials.neuron[row], result.trials.after[row])
        assert loaded.by_bit([site.name])[31].trials == (result.trials.bit[result.trials.site == position] == 31).sum()
    alone, _ = run(model, layers=[name])
    assert [site.name for site in alone.sites] == [name]
    assert [site.name for site in alone.excluded] == ["fc", second, "last"]


@pytest.mark.parametrize("name", NAMES)
def test_a_fault_and_a_request_mean_the_module_of_that_name(name: str) -> None:
    model, images = Named(name).eval(), torch.randn(2, 4)
    seen: list[Tensor] = []
    model.last.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].clone()))
    flip = rh.Fault(layer=name, elements=rh.faults.IndexedElements(indices=((1,),)), effect=rh.faults.Flip(bits=(31,)))
    golden = model(images)
    with rh.inject(model, flip) as report:
        model(images)
    assert report.injected == 2
    assert (seen[0] != seen[1]).tolist() == [[False, True, False, False]] * 2
    with rh.inject(model, rh.WeightBitFlip(layer=name, index=(2, 0), bit=31)):
        model(images)
    assert (seen[0] != seen[2]).tolist() == [[False, False, True, False]] * 2
    with rh.emulate(model, rh.formats.FixedPoint(integer_bits=3, fraction_bits=1), layers=[name]):
        model(images)
    assert (seen[3] * 2 == (seen[3] * 2).round()).all()
    assert torch.equal(model(images), golden)
    model.add_module(name, nn.Hardtanh())
    assert [site.name for site in find_sites(model, images).reached if site.module == name] == []
    assert [site.name for site in find_sites(model, images, modules=[name]).reached if site.module == name] == [name]


@pytest.mark.parametrize("name", NAMES)
def test_tables_and_plots_show_any_name(name: str) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    result, _ = run(Named(name).eval())
    table = rh.report.layer_table(result)
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(result.sites)
    assert len({line.replace(r"\|", "").count("|") for line in lines}) == 1
    assert all(character.isprintable() or character == "\n" for character in table)
    axes = rh.report.plot_layers({name: result})
    assert [text.get_text() for text in axes.get_xticklabels()] == [site.name for site in result.sites]
    assert [text.get_text().lstrip() for text in axes.get_legend().get_texts()] == [name]
    texts = [*axes.get_xticklabels(), *axes.get_legend().get_texts()]
    assert not any(text.get_parse_math() for text in texts)
    pyplot.close(axes.figure)


class Several(nn.Module):
    """Returns two tensors; a sibling has the name that the second would get."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("pair", nn.LSTMCell(4, 4))
        self.add_module("pair[1]", nn.Linear(4, 4))
        self.add_module("pair[1]~", nn.Linear(4, 4))
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self._modules["pair"](x)
        return self.fc(self._modules["pair[1]~"](self._modules["pair[1]"](first) + second))


def test_a_second_tensor_keeps_apart_from_a_module_of_its_name() -> None:
    result, _ = run(Several().eval(), trials_per_site=32)
    places = {site.name: (site.site.module, site.site.path) for site in result.sites}
    assert places == {
        "pair": ("pair", (0,)),
        "pair[1]~~": ("pair", (1,)),
        "pair[1]": ("pair[1]", ()),
        "pair[1]~": ("pair[1]~", ()),
        "fc": ("fc", ()),
    }
    assert len({tuple(result.trials.neuron[result.trials.site == row]) for row in range(5)}) == 5


def test_names_that_no_text_can_hold_are_refused() -> None:
    with pytest.raises(FaultError, match=r"name 'a\\ud800' of a module is no valid Unicode text"):
        find_sites(Named("a\ud800").eval(), torch.randn(2, 4))


def test_two_modules_of_one_name_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)))
    model._modules["1.0"] = nn.Linear(4, 4)
    with pytest.raises(FaultError, match=r"Two modules of Sequential are named '1\.0'"):
        find_sites(model, torch.randn(2, 4))


def test_streams_of_names_with_separators_differ() -> None:
    assert stream_name("fc\0stratum") != stream_name("fc", "stratum")
    assert stream_name("fc", "stratum") == "fc\0stratum"


class Block(nn.Identity):
    pass


def test_classes_stay_classes_on_disk(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU(), Block(), nn.Linear(4, 3)).eval()
    model.add_module("torch.nn".replace(".", "_"), nn.Identity())
    result, data = run(model, modules=[nn.GELU, "torch_nn", Block], output=tmp_path / "run")
    loaded = rh.CampaignResult.load(tmp_path / "run")
    assert loaded.config.modules == (nn.GELU, "torch_nn", Block)
    again = rh.run_campaign(model, data, dataclasses.replace(loaded.config, seed=1), progress=False)
    assert again.sites == result.sites


def test_a_class_that_is_not_imported_is_never_taken_for_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(nn.Linear(4, 4), Block()).eval()
    _, data = run(model, modules=[Block], output=tmp_path / "run")
    saved = (tmp_path / "run" / "campaign.json").read_bytes()
    monkeypatch.setitem(sys.modules, __name__, None)
    loaded = rh.CampaignResult.load(tmp_path / "run")
    assert loaded.config.modules == (f"{__name__}:Block",)
    assert loaded.save(tmp_path / "copy").joinpath("campaign.json").read_bytes() == saved
    with pytest.raises(FaultError, match="has no module"):
        find_sites(model, data[0], modules=loaded.config.modules)
