"""The trials of a campaign as tables of sites and numbers."""

import numpy as np

from resilient_heads import CampaignResult


def grid(result: CampaignResult) -> dict[str, np.ndarray]:
    """Each column as ``(L, N)``; every site has the same number of trials."""
    shape = (len(result.sites), -1)
    return {name: column.reshape(shape) for name, column in result.trials.columns.items()}
