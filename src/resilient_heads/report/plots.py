"""Plots. Every function draws into the axes that it is given, or into new ones, and returns them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from resilient_heads.campaign.result.results import CampaignResult
from resilient_heads.campaign.trials.columns import RATES
from resilient_heads.checks import one_of
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
    """Draw one figure of every struck site, a mark with its interval, models side by side.

    Args:
        results: Name of the model to its campaign; sites of equal names share a place.
        metric: ``"delta_loss"`` or a rate, such as ``"sdc"``.
        level: Confidence level of the bars.
        ax: Where to draw.

    Raises:
        ArgumentError: No result, or an unknown metric.
        MissingExtraError: matplotlib is not installed.
    """
    one_of("metric", metric, ("delta_loss", *RATES))
    if not isinstance(results, Mapping) or not results:
        raise ArgumentError("No campaign was given; pass a mapping from a model's name to its result.")
    axes: Axes = _axes(ax)
    places = _places(results)
    for number, (name, result) in enumerate(results.items()):
        layers = result.by_layer(level=level)
        estimates = [layer.figures[metric] for layer in layers]
        shift = (number - (len(results) - 1) / 2) * 0.3
        x = np.array([places[layer.name] for layer in layers]) + shift
        ends = np.array([[estimate.low, estimate.value, estimate.high] for estimate in estimates])
        drawn = np.isfinite(ends[:, 1])
        low, value, high = ends[drawn].T
        reach = np.stack([value - low, high - value])
        axes.errorbar(
            x[drawn],
            value,
            yerr=np.where(np.isfinite(reach), np.clip(reach, 0, None), 0),
            fmt="o",
            markersize=4,
            elinewidth=1,
            color=_COLOURS[number % len(_COLOURS)],
            label=name if drawn.all() else f"{name} ({int((~drawn).sum())} sites not finite)",
        )
    if metric == "delta_loss":
        axes.set_yscale("symlog", linthresh=1e-4)
    axes.set_xticks(range(len(places)), list(places), rotation=90, fontsize=7)
    axes.set_ylabel(_LABELS.get(metric, f"{metric} rate per fault"))
    axes.set_title(", ".join(dict.fromkeys(result.config.protocol.name for result in results.values())), loc="left")
    axes.margins(x=0.01)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(results), borderaxespad=0.2
    )
    return axes


def _places(results: Mapping[str, CampaignResult]) -> dict[str, int]:
    """Give each site a place, in the order of execution of the model that has most; further sites follow."""
    longest_first = sorted(results.values(), key=lambda result: -len(result.sites))
    names = dict.fromkeys(struck.site.name for result in longest_first for struck in result.sites)
    return {name: place for place, name in enumerate(names)}


def _axes(ax: "Axes | None") -> Any:
    """Return the given axes or new ones."""
    if ax is not None:
        return ax
    pyplot = require("matplotlib.pyplot", extra="report", purpose="plots")
    return pyplot.subplots(figsize=(9, 4), layout="constrained")[1]
