"""Plots of results. Each function draws into the given axes, or into new ones, and returns them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from resilient_heads.campaign.result.results import CampaignResult
from resilient_heads.campaign.trials.rates import RATES
from resilient_heads.checks import instance_of, one_of
from resilient_heads.errors import ArgumentError
from resilient_heads.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#4c6a92", "#d1603d", "#5b8c5a", "#8d6a9f")
_LABELS = {
    "delta_loss": "mean delta loss per fault (nats)",
    "sdc": "SDC rate per fault",
    "due": "DUE rate per fault",
    "masked": "masked rate per fault",
    "tolerable": "tolerable rate per fault",
}


def plot_layers(
    results: Mapping[str, CampaignResult],
    *,
    metric: str = "sdc",
    level: float = 0.99,
    ax: "Axes | None" = None,
) -> "Axes":
    """Plot one figure of every site with its interval, several models side by side.

    Args:
        results: Maps the name of each model to its campaign. Sites with equal names share a position.
        metric: ``"delta_loss"`` or a rate, such as ``"sdc"``.
        level: Confidence level of the intervals.
        ax: Axes of matplotlib to draw into; None: new axes.

    Raises:
        ArgumentError: No result, another kind of value, or an unknown metric.
        MissingExtraError: matplotlib is not installed.
    """
    one_of("metric", metric, ("delta_loss", *RATES))
    if not isinstance(results, Mapping) or not results:
        raise ArgumentError('results must map each model\'s name to its CampaignResult, such as {"baseline": result}.')
    for name, result in results.items():
        instance_of(f"results[{name!r}]", result, CampaignResult, example='rh.CampaignResult.load("folder")')
    axes: Axes = _axes(ax)
    positions = _positions(results)
    for number, (name, result) in enumerate(results.items()):
        layers = result.by_layer(level=level)
        estimates = [layer.figures[metric] for layer in layers]
        shift = (number - (len(results) - 1) / 2) * 0.3
        x = np.array([positions[layer.name] for layer in layers]) + shift
        ends = np.array([[estimate.low, estimate.value, estimate.high] for estimate in estimates])
        drawn = np.isfinite(ends[:, 1])
        low, value, high = ends[drawn].T
        lengths = np.stack([value - low, high - value])
        axes.errorbar(
            x[drawn],
            value,
            yerr=np.where(np.isfinite(lengths), np.clip(lengths, 0, None), 0),
            fmt="o",
            markersize=4,
            elinewidth=1,
            color=_COLOURS[number % len(_COLOURS)],
            # A label that starts with an underscore is left out of legends.
            label=f"{' ' * name.startswith('_')}{name}"
            if drawn.all()
            else f"{name} ({int((~drawn).sum())} sites not finite)",
        )
    if metric == "delta_loss":
        axes.set_yscale("symlog", linthresh=1e-4)
    axes.set_xticks(range(len(positions)), list(positions), rotation=90, fontsize=7, parse_math=False)
    axes.set_ylabel(_LABELS.get(metric, f"{metric} rate per fault"))
    axes.set_title(
        ", ".join(dict.fromkeys(result.config.protocol.name for result in results.values())),
        loc="left",
        parse_math=False,
    )
    axes.margins(x=0.01)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    legend = axes.legend(
        frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(results), borderaxespad=0.2
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # "$" in a name is no formula
    return axes


def _positions(results: Mapping[str, CampaignResult]) -> dict[str, int]:
    """Return a position for each site: the sites of the model with most sites first, then the others."""
    longest_first = sorted(results.values(), key=lambda result: -len(result.sites))
    names = dict.fromkeys(site.site.name for result in longest_first for site in result.sites)
    return {name: position for position, name in enumerate(names)}


def _axes(ax: "Axes | None") -> Any:
    """Return the given axes or new ones."""
    if ax is not None:
        return ax
    pyplot = require("matplotlib.pyplot", extra="report", purpose="plots")
    return pyplot.subplots(figsize=(9, 4), layout="constrained")[1]
