"""Statistics of campaigns: numbers from numbers."""

from resilient_heads.statistics.fit import fit_rate
from resilient_heads.statistics.intervals import Estimate, clopper_pearson, wilson
from resilient_heads.statistics.planning import bonferroni, holm, margin_of_error, sample_size

__all__ = [
    "Estimate",
    "bonferroni",
    "clopper_pearson",
    "fit_rate",
    "holm",
    "margin_of_error",
    "sample_size",
    "wilson",
]
