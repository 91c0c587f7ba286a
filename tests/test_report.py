import math

import pytest
import torch
from torch import Tensor, nn

import resilient_heads as rh
from resilient_heads.errors import ArgumentError
from resilient_heads.report.tables import markdown_table, ratio_text
from resilient_heads.statistics.intervals import Estimate

pyplot = pytest.importorskip("matplotlib.pyplot")
pyplot.switch_backend("agg")


@pytest.fixture
def results(small_net: nn.Module, labelled: tuple[Tensor, Tensor]) -> dict[str, rh.CampaignResult]:
    def run() -> rh.CampaignResult:
        return rh.run_campaign(small_net, labelled, protocol="raw", trials_per_site=80, progress=False)

    plain = run()
    rh.wrap_model(small_net, embeddings=rh.ClassEmbeddings(torch.randn(5, 8), tuple("abcde")))
    optimizer = torch.optim.Adam(small_net.parameters(), 0.02)
    for _ in range(40):
        nn.functional.cross_entropy(small_net(labelled[0]), labelled[1]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"plain": plain, "text-guided": run()}


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]


def test_comparison_table_shows_every_figure_of_the_comparison(results: dict[str, rh.CampaignResult]) -> None:
    comparison = rh.compare(*results.values())
    rows = cells(rh.report.comparison_table([comparison], names=("a", "b"), parameters=(1_500_000, 1_000_000)))
    assert rows[0][4:6] == ["a", "b"]
    assert ["", "", "", "parameters", "1.50 M", "1.00 M", "-0.50 M"] in rows
    shown = {tuple(row[:4]) for row in rows}
    for layers in ("last layer(s)", "last layer(s), all tensors", "all layers"):
        for figure in ("delta loss", "SDC", "DUE"):
            assert {("raw", layers, "layer-averaged", figure), ("raw", layers, "bit-weighted", figure)} <= shown
        assert ("raw", layers, "", "harmful bits, SDC") in shown
    sdc = comparison.improvement("network", "sdc", weighting="layer_averaged")
    row = next(row for row in rows if row[:4] == ["raw", "all layers", "layer-averaged", "SDC"])
    assert row[4].startswith(f"{100 * sdc.baseline.value:.3g}%")
    assert row[6].startswith(f"{sdc.ratio.value:.3g}x")
    harmful = comparison.improvement("network", "sdc")
    row = next(row for row in rows if row[:4] == ["raw", "all layers", "", "harmful bits, SDC"])
    assert row[4:6] == [str(harmful.baseline), str(harmful.candidate)]
    assert row[6].startswith(f"{harmful.ratio.value:.3g}x")


def test_layer_table_has_a_row_for_every_site(results: dict[str, rh.CampaignResult]) -> None:
    rows = cells(rh.report.layer_table(results["text-guided"]))
    assert [row[0] for row in rows[2:]] == ["conv1", "conv2", "fc.latent", "fc.unit", "fc.projection", "fc"]
    assert rows[0][4:8] == ["masked", "tolerable", "SDC", "DUE"]
    for row in rows[2:]:  # the outcomes of all trials: no column is left out
        assert sum(float(cell.split("%")[0]) for cell in row[4:8]) == pytest.approx(100, abs=0.5)


def test_tables_are_aligned() -> None:
    lines = markdown_table(["a", "long title"], [["wide cell", "1"]]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].endswith(":|")


@pytest.mark.parametrize(
    ("baseline", "candidate", "ratio", "text"),
    [
        (0.0, 0.0, math.nan, "none in either"),
        (0.1, 0.0, math.inf, "none left"),
        (math.inf, 0.1, math.inf, "not finite"),
        (0.2, 0.1, 2.0, "2x"),
    ],
)
def test_ratios_that_are_no_numbers_say_why(baseline: float, candidate: float, ratio: float, text: str) -> None:
    from resilient_heads.campaign.analysis.comparison import Improvement

    def estimate(value: float) -> Estimate:
        return Estimate(value, 0, 1, 0.99, "")

    improvement = Improvement(
        scope="last",
        weighting="bit_weighted",
        metric="sdc",
        baseline=estimate(baseline),
        candidate=estimate(candidate),
        ratio=Estimate(ratio, 0.5, math.inf, 0.99, ""),
        difference=Estimate(baseline - candidate if math.isfinite(baseline) else math.nan, 0, 1, 0.99, ""),
    )
    assert ratio_text(improvement).startswith(text)


def test_plot_draws_what_the_result_says(results: dict[str, rh.CampaignResult]) -> None:
    axes = pyplot.Figure().subplots()
    assert rh.report.plot_layers(results, metric="sdc", ax=axes) is axes
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        site.site.name for site in results["text-guided"].sites
    ]
    points = axes.containers[0].lines[0].get_ydata()
    assert list(points) == [layer.figures.sdc.value for layer in results["plain"].by_layer()]


def test_plot_says_how_many_values_it_cannot_draw(results: dict[str, rh.CampaignResult]) -> None:
    results["plain"].trials.delta_loss[0] = math.inf
    axes = pyplot.Figure().subplots()
    rh.report.plot_layers({"plain": results["plain"]}, metric="delta_loss", ax=axes)
    assert axes.get_legend().get_texts()[0].get_text() == "plain (1 sites not finite)"


def test_plot_makes_its_own_axes_and_refuses_nonsense(results: dict[str, rh.CampaignResult]) -> None:
    axes = rh.report.plot_layers(results)
    pyplot.close(axes.figure)
    with pytest.raises(ArgumentError, match='metric must be "delta_loss", '):
        rh.report.plot_layers(results, metric="accuracy")
    with pytest.raises(ArgumentError, match="must map each model"):
        rh.report.plot_layers({})
