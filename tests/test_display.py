"""What results print: it fits a screen, and says the most important first."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import resilient_heads as rh
from helpers.public_face import public_objects
from resilient_heads.display import WIDTH, as_code, columns, cut, percent, shortened

LINES = 24
SPACES = ("rh.campaign.", "rh.statistics.")
LONG = "stage_with_a_rather_long_name_that_somebody_gave_to_it"
ELSEWHERE = {
    "rh.BitFlip", "rh.Fault", "rh.FaultModel", "rh.WeightBitFlip",  # values that readers type themselves
    "rh.ClassDescriptions", "rh.ClassEmbeddings", "rh.TextGuidedHead",  # tests/text and tests/heads
    "rh.Outcome",  # an enumeration
}  # fmt: skip


class Deep(nn.Module):
    """A model with so many layers that a table of all of them does not fit a screen."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({f"{LONG}_{number}": nn.Linear(6, 6) for number in range(30)})
        self.fc = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        for layer in self.layers.values():
            x = x + torch.relu(layer(x))
        return self.fc(x)


@cache
def campaign(protection: bool = False) -> tuple[nn.Module, Any, rh.CampaignResult]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, images = Deep().eval(), torch.randn(12, 6, 1, 1)
    data = images, model(images).argmax(dim=1)
    if protection:
        rh.protect_(model, classifier="fc", checksum=True, median=False)
    protocol = rh.Protocol(name="raw, with a name of many words, so that it does not fit into a heading of a table")
    return model, data, rh.run_campaign(model, data, protocol=protocol, trials_per_site=8, progress=False)


def result() -> rh.CampaignResult:
    return campaign()[2]


def comparison() -> rh.campaign.Comparison:
    return rh.compare(result(), campaign(True)[2])


def design() -> rh.StratifiedDesign:
    return rh.neyman_design(result(), total_trials=4000, by=("magnitude", "channel"), metric="delta_loss")


@cache
def exhaustive() -> rh.campaign.ExhaustiveResult:
    model, data, _ = campaign()
    return rh.run_exhaustive(model, data, layers=["fc", "layers.*_2?"], progress=False)


def scope() -> rh.campaign.ScopeSummary:
    return result().summary().network


def sample() -> rh.statistics.Sample:
    zeros = np.zeros(400, dtype=int)
    return rh.statistics.Sample(
        weight=np.full(400, 1 / 400), site=zeros, stratum=zeros, image=np.arange(400), image_draw=np.arange(400)
    )


EXAMPLES: dict[str, tuple[Callable[[], object], str]] = {
    "rh.CampaignConfig": (lambda: rh.CampaignConfig(design=design(), layers=[LONG] * 30), "CampaignConfig(design=Str"),
    "rh.CampaignResult": (result, "CampaignResult(Deep, raw, with"),
    "rh.Coverage": (lambda: result().coverage, "100 % of multiply-accumulates, "),
    "rh.Protocol": (lambda: result().config.protocol, "Protocol(name="),
    "rh.Protection": (lambda: rh.Protection(checksum=True), "checksum"),
    "rh.ProtectionMonitor": (lambda: rh.ProtectionMonitor(campaign(True)[0]), "head  rows"),
    "rh.Shard": (lambda: rh.Shard(rank=1, world_size=4), "Shard(rank=1"),
    "rh.StoppingRule": (
        lambda: rh.StoppingRule(half_width=0.1, relative=True),
        "StoppingRule(half_width=0.1, ",
    ),
    "rh.StratifiedDesign": (design, "StratifiedDesign(total_trials=4000"),
    "rh.UniformDesign": (lambda: rh.UniformDesign(trials_per_site=9), "UniformDesign(trials_per_site=9)"),
    "rh.campaign.BitSummary": (lambda: result().by_bit()[30], "bit 30 (exponent): SDC rate "),
    "rh.campaign.CampaignSite": (lambda: result().sites[0], "<CampaignSite layers.stage"),
    "rh.campaign.Comparison": (comparison, "raw, with a name of many wo..., accuracy 1 to 1; above 1x"),
    "rh.campaign.ExhaustiveResult": (exhaustive, "2"),
    "rh.campaign.Figures": (lambda: scope().layer_averaged, "figure           248 trials, 99 % intervals"),
    "rh.campaign.GoldenRun": (lambda: result().golden, "<GoldenRun: 12 images, 12 correct, 12 eligible>"),
    "rh.campaign.Improvement": (
        lambda: comparison().improvement("last_all", "sdc"),
        "sdc in last_all (harmful_bits)",
    ),
    "rh.campaign.LayerDifference": (lambda: comparison().layers[0], "layers.stage"),
    "rh.campaign.ReplayedTrial": (
        lambda: rh.replay(result(), *campaign()[:2], site=0, trial=3),
        "trial 3 at layers.stage_with",
    ),
    "rh.campaign.ScopeSummary": (scope, "network: 31 sites, 248 trials, 99 % intervals"),
    "rh.campaign.SiteSummary": (lambda: result().by_layer()[0], "layers.stage"),
    "rh.campaign.Summary": (lambda: result().summary(), "raw, with a name of many words"),
    "rh.campaign.TensorCounts": (lambda: exhaustive().tensors[0], "<TensorCounts layers.stage"),
    "rh.campaign.Trials": (lambda: result().trials, "<Trials: 248 trials at 31 sites on "),
    "rh.statistics.Estimate": (lambda: scope().layer_averaged.sdc, "0"),
    "rh.statistics.Sample": (sample, "<Sample: 400 trials in 1 strata on 400 images>"),
    "what find_sites returns": (lambda: rh.find_sites(campaign()[0], campaign()[1][0]), "31 sites"),
    "a site": (lambda: result().sites[0].site, "Site(module="),
}


def test_every_public_class_of_results_and_choices_is_shown_here() -> None:
    classes = {name for name, value in public_objects().items() if isinstance(value, type)}
    shown = {name for name in classes if name.startswith(SPACES) or name.count(".") == 1}
    assert shown - ELSEWHERE - set(EXAMPLES) == set()


@pytest.mark.parametrize("name", EXAMPLES)
def test_text_fits_a_screen_and_begins_with_the_most_important(name: str) -> None:
    make, beginning = EXAMPLES[name]
    value = make()
    if name.startswith("rh."):
        assert type(value) is public_objects()[name]
    assert str(value).startswith(beginning), str(value)
    for text in (str(value), repr(value)):
        lines = text.splitlines()
        assert len(lines) <= LINES
        assert max(map(len, lines)) <= WIDTH, text
        assert "array(" not in text
        assert "nan" not in text


def test_a_summary_says_rates_protocol_trials_and_coverage() -> None:
    text = str(result().summary())
    assert "248 trials on 12 of 12 images, 99 % intervals" in text
    assert "coverage: " in text
    for figure in ("SDC rate", "DUE rate", "mean delta loss", "harmful bits (SDC)"):
        assert figure in text
    network = result().summary().network
    assert str(network.layer_averaged.sdc) in text
    assert str(network.harmful_bits()) in text
    assert text.index("network") < text.index("last")


def test_scopes_that_pages_name_are_attributes() -> None:
    summary = result().summary()
    for name in ("last", "last_all", "network", "network_all"):
        assert getattr(summary, name) is summary.scopes[name]


def test_a_dataclass_as_code_shows_what_differs_from_the_defaults() -> None:
    assert as_code(rh.CampaignConfig(seed=3)) == "CampaignConfig(seed=3)"
    assert eval(as_code(rh.StoppingRule(half_width=0.5)), {"StoppingRule": rh.StoppingRule}) == rh.StoppingRule(
        half_width=0.5
    )


def test_the_parts_of_text() -> None:
    assert cut("a\nname  of\twords", 9) == "a name..."
    assert percent(0.99) == "99 %"
    assert columns([["a", "bb"], ["ccc", "d"]]) == "a    bb\nccc  d"
    assert shortened(["a", "b", "c", "d"], 3) == "a\nb\n... and 2 more"
    assert shortened(["a", "b", "c"], 3) == "a\nb\nc"
