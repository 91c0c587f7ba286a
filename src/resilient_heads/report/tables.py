"""Tables in Markdown, aligned so that they read well as text too."""

import math
from collections.abc import Sequence

from resilient_heads.campaign.analysis.comparison import HARMFUL_BITS, Comparison, Improvement
from resilient_heads.campaign.figures.scopes import SCOPES
from resilient_heads.campaign.result.results import CampaignResult
from resilient_heads.checks import instance_of, one_of
from resilient_heads.display import percent
from resilient_heads.errors import ArgumentError
from resilient_heads.statistics.intervals import Estimate

_METRICS = {"delta_loss": "delta loss", "sdc": "SDC", "due": "DUE"}
_WEIGHTINGS = {"layer_averaged": "layer-averaged", "bit_weighted": "bit-weighted"}
_LISTED = 20
"""Most names in a note."""
_SCOPES = {
    "last": "last layer(s)",
    "last_all": "last layer(s), all tensors",
    "network": "all layers",
    "network_all": "all layers and tensors",
}


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Return a Markdown table; the first ``left`` columns are aligned left, the others right."""
    cells = [[_one_line(cell).replace("|", r"\|") for cell in row] for row in (header, *rows)]
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
    """Return a Markdown table of two models: accuracy, cost, and resilience under one or more protocols.

    Args:
        comparisons: One comparison for each protocol, all of the same two models.
        names: Column titles of the two models.
        parameters: Numbers of parameters of the two models.
        flops: Numbers of FLOPs for one image through the two models.
        scopes: Sets of sites to show: keys of :data:`~resilient_heads.campaign.figures.scopes.SCOPES`.

    Raises:
        ArgumentError: No comparison, or an unknown scope.
    """
    if not isinstance(comparisons, list | tuple) or not comparisons:
        raise ArgumentError("Pass a list of one or more comparisons: comparison_table([compare(a, b)]).")
    for comparison in comparisons:
        instance_of("comparisons[0]", comparison, Comparison, example="compare(a, b)")
    for scope in scopes:
        one_of("scope", scope, tuple(SCOPES))
    first = comparisons[0]
    before, after = first.baseline, first.candidate
    gain = f"{100 * first.accuracy_gain.value:+.2f} points {_ends(first.accuracy_gain, '+.2f', 100)}"
    margin = f"{first.top2diff_gain.value:+.3f} {_ends(first.top2diff_gain, '+.3f')}"
    rows = [
        ["", "", "", "accuracy", _percent(before.accuracy), _percent(after.accuracy), gain],
        ["", "", "", "Top2Diff", str(before.top2diff), str(after.top2diff), margin],
    ]
    for title, pair in (("parameters", parameters), ("FLOPs", flops)):
        if pair is not None:
            one, other = (f"{count / 1e6:.2f} M" for count in pair)
            rows.append(["", "", "", title, one, other, f"{(pair[1] - pair[0]) / 1e6:+.2f} M"])
    for comparison in comparisons:
        for scope in scopes:
            rows.extend(_scope_rows(comparison, scope))
    header = ["protocol", "layers", "mean", "figure", *names, "change"]
    notes = [f"{percent(first.baseline.level)} intervals.", *_notes(comparisons, scopes)]
    return markdown_table(header, rows, left=4) + "".join(f"\n{note}\n" for note in notes)


def _notes(comparisons: Sequence[Comparison], scopes: Sequence[str]) -> list[str]:
    """Return what a reader has to know of the comparisons, each sentence once."""
    notes = [note for comparison in comparisons for note in comparison.notes]
    shown = (i for comparison in comparisons for i in comparison.improvements if i.scope in scopes)
    return list(dict.fromkeys([*(improvement.note for improvement in shown if improvement.note), *notes]))


def layer_table(result: CampaignResult) -> str:
    """Return a Markdown table of all sites: size, range, outcomes and delta loss per fault.

    Below the table stand the coverage, and the sites that were left out.

    Raises:
        ArgumentError: ``result`` is no result of a campaign.
    """
    instance_of("result", result, CampaignResult, example='rh.CampaignResult.load("folder")')
    rows = [
        [
            layer.name,
            layer.kind,
            f"{layer.neurons:,}",
            "-" if layer.range_limit is None else f"{layer.range_limit:.3g}",
            _percent(layer.figures.masked),
            _percent(layer.figures.tolerable),
            _percent(layer.figures.sdc),
            _percent(layer.figures.due),
            str(layer.figures.delta_loss),
        ]
        for layer in result.by_layer()
    ]
    header = ["site", "kind", "neurons", "range", "masked", "tolerable", "SDC", "DUE", "delta loss"]
    notes = [f"- coverage: {result.coverage}."]
    reasons: dict[str, list[str]] = {}
    for name, reason in result.uninjectable.items():
        reasons.setdefault(reason, []).append(name)
    notes += [f"- uninjectable, because {reason}: {_listed(names)}." for reason, names in reasons.items()]
    if result.excluded:
        notes.append(f"- excluded by layers=: {_listed([site.name for site in result.excluded])}.")
    return "\n".join([markdown_table(header, rows), *map(_one_line, notes)]) + "\n"


def table_notes() -> str:
    """Return a Markdown list that explains the words of :func:`comparison_table`."""
    lines = [
        f"- {meaning}."
        if (meaning := scope.description).startswith(_SCOPES[name])
        else f"- {_SCOPES[name]}: {meaning}."
        for name, scope in SCOPES.items()
        if name != "network_all"
    ]
    lines += [
        "- layer-averaged: the mean of the layers' figures, as in published campaigns. bit-weighted: the mean over all "
        "bits of all layers, as for a flip in a random bit.",
        "- delta loss, SDC, DUE: mean and rates per fault. Harmful bits: expected number of bits of one inference "
        "whose flip causes the outcome.",
        "- change: for rates and losses, the baseline divided by the candidate: above 1x the candidate is better.",
        "- without a range detector a flip may cause losses of 1e38; a mean of such losses says nothing.",
    ]
    return "\n".join(lines) + "\n"


def _listed(names: Sequence[str]) -> str:
    """Return the first names of a list, and how many more there are."""
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def _one_line(text: str) -> str:
    """Return a text with line breaks and other control characters as escapes, since names may hold any character."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _scope_rows(comparison: Comparison, scope: str) -> list[list[str]]:
    """Return the rows of one protocol and one set of sites."""
    protocol = comparison.baseline.protocol
    rows: list[list[str]] = []
    harmful: list[list[str]] = []
    for improvement in (found for found in comparison.improvements if found.scope == scope):
        is_loss, is_number = improvement.metric == "delta_loss", improvement.weighting == HARMFUL_BITS
        show = str if is_loss or is_number else _percent
        figure = _METRICS[improvement.metric]
        (harmful if is_number else rows).append(
            [
                protocol.name,
                _SCOPES[scope],
                "" if is_number else _WEIGHTINGS[improvement.weighting],
                f"harmful bits, {figure}" if is_number else figure,
                show(improvement.baseline),
                show(improvement.candidate),
                "-" if is_loss and protocol.range_detector is None else ratio_text(improvement),
            ]
        )
    return rows + harmful


def ratio_text(improvement: Improvement) -> str:
    """Return a ratio with its interval, or the reason why there is none."""
    ratio = improvement.ratio
    if math.isnan(ratio.value):
        return "none in either" if improvement.baseline.value == 0 else "not defined"
    ends = _ends(ratio, ".3g")
    if math.isinf(ratio.value):
        return f"none left {ends}" if improvement.candidate.value == 0 else f"not finite {ends}"
    return f"{ratio.value:.3g}x {ends}"


def _percent(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return str(estimate)
    return f"{100 * estimate.value:.3g}% [{100 * estimate.low:.2g}, {100 * estimate.high:.3g}]"


def _ends(estimate: Estimate, form: str, factor: int = 1) -> str:
    return f"[{factor * estimate.low:{form}}, {factor * estimate.high:{form}}]"
