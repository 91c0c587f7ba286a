"""Tables in Markdown that also read well as plain text."""

import math
from collections.abc import Sequence

from resilient_heads.campaign.analysis.compare import Comparison, Improvement
from resilient_heads.campaign.figures.summary import SCOPES
from resilient_heads.campaign.result.results import CampaignResult
from resilient_heads.checks import one_of
from resilient_heads.errors import ArgumentError
from resilient_heads.statistics.intervals import Estimate

_METRICS = {"delta_loss": "delta loss", "sdc": "SDC", "due": "DUE"}
_WEIGHTINGS = {"layer_averaged": "layer", "bit_weighted": "bit"}
_SCOPES = {
    "last": "last layer(s)",
    "last_all": "last layer(s), all tensors",
    "network": "all layers",
    "network_all": "all layers and tensors",
}


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Return a Markdown table with aligned columns, of which the first ``left`` read from the left."""
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        aligned = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "| " + " | ".join(aligned) + " |"

    rule = ["-" * (width + 2) if column < left else "-" * (width + 1) + ":" for column, width in enumerate(widths)]
    return "\n".join([line(header), "|" + "|".join(rule) + "|", *(line(row) for row in cells[1:])]) + "\n"


def comparison_table(
    comparisons: Sequence[Comparison],
    *,
    names: tuple[str, str] = ("baseline", "text-guided"),
    parameters: tuple[int, int] | None = None,
    flops: tuple[int, int] | None = None,
    scopes: Sequence[str] = ("last", "last_all", "network"),
) -> str:
    """Return one Markdown table of what two models cost and how they fare under one or more protocols.

    Args:
        comparisons: Of the same two models, one a protocol.
        names: Column titles.
        parameters: Of the two models.
        flops: Of one image through the two models.
        scopes: Which of :data:`~resilient_heads.campaign.figures.summary.SCOPES` to show.

    Raises:
        ArgumentError: No comparison, or an unknown scope.
    """
    if isinstance(comparisons, Comparison) or not comparisons:
        raise ArgumentError("Pass a list of one or more comparisons: comparison_table([compare(a, b)]).")
    for scope in scopes:
        one_of("scope", scope, tuple(SCOPES))
    first = comparisons[0]
    rows = [
        _row(
            "accuracy",
            _percent(first.baseline.accuracy),
            _percent(first.candidate.accuracy),
            _points(first.accuracy_gain),
        ),
        _row(
            "Top2Diff",
            _number(first.baseline.top2diff),
            _number(first.candidate.top2diff),
            _signed(first.top2diff_gain),
        ),
    ]
    for title, pair in (("parameters", parameters), ("FLOPs", flops)):
        if pair is not None:
            rows.append(_row(title, _millions(pair[0]), _millions(pair[1]), f"{(pair[1] - pair[0]) / 1e6:+.2f} M"))
    for comparison in comparisons:
        rows.extend(_protocol_rows(comparison, scopes))
    level = f"{first.baseline.level:.0%} intervals"
    header = ["protocol", "layers", "mean by", "figure", *names, "change"]
    return markdown_table(header, rows, left=4) + f"\n{level}.\n"


def layer_table(result: CampaignResult) -> str:
    """Return one row for each struck site: size, range, outcomes and delta loss per fault; then what was not struck."""
    rows = [
        [
            layer.name,
            layer.kind,
            f"{layer.neurons:,}",
            "-" if layer.range_limit is None else f"{layer.range_limit:.3g}",
            _percent(layer.figures.masked),
            _percent(layer.figures.sdc),
            _percent(layer.figures.due),
            _number(layer.figures.delta_loss),
        ]
        for layer in result.by_layer()
    ]
    header = ["site", "kind", "neurons", "range", "masked", "SDC", "DUE", "delta loss"]
    uninjectable = [f"- not struck: {name}: {reason}." for name, reason in result.uninjectable.items()]
    uninjectable += [f"- not struck: {struck.site.name}: left out by layers=." for struck in result.excluded]
    return "\n".join([markdown_table(header, rows), *uninjectable]) + ("\n" if uninjectable else "")


def notes() -> str:
    """Return what the words of a comparison table mean, as a Markdown list."""
    lines = [
        f"- {meaning}." if meaning.startswith(_SCOPES[name]) else f"- {_SCOPES[name]}: {meaning}."
        for name, meaning in SCOPES.items()
        if name != "network_all"
    ]
    lines += [
        "- mean by layer: every layer counts alike, as published; by bit: every bit of every layer counts alike, "
        "as for a flip that may strike anywhere.",
        "- delta loss, SDC, DUE: mean and rates per fault. Harmful bits: bits of one inference whose flip, each alone, "
        "would end so.",
        "- change: for rates and losses, baseline divided by candidate, so above 1x the candidate is better.",
        "- without a range detector a flip may give losses of 1e38: their mean is shown, but says nothing.",
    ]
    return "\n".join(lines) + "\n"


def _row(figure: str, baseline: str, candidate: str, change: str) -> list[str]:
    """Return a row that belongs to no protocol."""
    return ["", "", "", figure, baseline, candidate, change]


def _protocol_rows(comparison: Comparison, scopes: Sequence[str]) -> list[list[str]]:
    """Return the rows of one protocol."""
    protocol = comparison.baseline.protocol
    rows = []
    for scope in scopes:
        found = [improvement for improvement in comparison.improvements if improvement.scope == scope]
        for improvement in found:
            loss = improvement.metric == "delta_loss"
            show = _number if loss else _percent
            meaningless = loss and protocol.range_detector is None
            rows.append(
                [
                    protocol.name,
                    _SCOPES[scope],
                    _WEIGHTINGS[improvement.weighting],
                    _METRICS[improvement.metric],
                    show(improvement.baseline),
                    show(improvement.candidate),
                    "-" if meaningless else _ratio(improvement),
                ]
            )
        for metric in ("sdc", "due") if found else ():
            before, after = (
                summary.scopes[scope].harmful_bits(metric) for summary in (comparison.baseline, comparison.candidate)
            )
            label = f"harmful bits, {_METRICS[metric]}"
            change = f"{round(after.value - before.value, 3):+.3g}"
            rows.append([protocol.name, _SCOPES[scope], "", label, _number(before), _number(after), change])
    return rows


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.3g}% [{100 * estimate.low:.2g}, {100 * estimate.high:.3g}]"


def _points(estimate: Estimate) -> str:
    return f"{100 * estimate.value:+.2f} points [{100 * estimate.low:+.2f}, {100 * estimate.high:+.2f}]"


def _number(estimate: Estimate) -> str:
    return f"{estimate.value:.3g} [{estimate.low:.3g}, {estimate.high:.3g}]"


def _signed(estimate: Estimate) -> str:
    return f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"


def _ratio(improvement: Improvement) -> str:
    """Return a ratio with its interval, or why there is none."""
    ratio = improvement.ratio
    if math.isnan(ratio.value):
        return "none in either" if improvement.baseline.value == 0 else "not defined"
    ends = f"[{ratio.low:.3g}, {ratio.high:.3g}]"
    if math.isinf(ratio.value):
        return f"none left {ends}" if improvement.candidate.value == 0 else f"not finite {ends}"
    return f"{ratio.value:.3g}x {ends}"
