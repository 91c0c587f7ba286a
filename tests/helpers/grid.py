"""The trials of a campaign as tables of L sites and N trials."""

import numpy as np

from resilient_heads import CampaignResult


def grid(result: CampaignResult) -> dict[str, np.ndarray]:
    """Return each column as a table ``(L, N)``; every site must have the same number of trials."""
    shape = (len(result.sites), -1)
    return {name: column.reshape(shape) for name, column in result.trials.columns.items()}
