"""Trials as a pandas table."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from resilient_heads.campaign.trials.columns import Trials
from resilient_heads.campaign.trials.outcomes import Outcome
from resilient_heads.extras import require

if TYPE_CHECKING:
    import pandas


def trials_table(trials: Trials, layers: Sequence[str]) -> "pandas.DataFrame":
    """Return a table with a row for each trial, in which sites and outcomes have names."""
    pandas = require("pandas", extra="results", purpose="tables of trials")
    table = pandas.DataFrame(trials.columns)
    table.insert(0, "layer", pandas.Categorical.from_codes(trials.site, categories=list(layers)))
    table["outcome"] = pandas.Categorical.from_codes(
        trials.outcome, categories=[outcome.name.lower() for outcome in Outcome]
    )
    return table
