"""Statistics of campaigns: functions from numbers to numbers.

Rates and their intervals, weighted samples of trials, sample sizes, several comparisons at once, failures in time, and
the measures of what a fault did to the logits.
"""

from resilient_heads.statistics.fit import fit_rate
from resilient_heads.statistics.functional import cross_entropy, delta_loss, top2diff
from resilient_heads.statistics.intervals import (
    Estimate,
    clopper_pearson,
    difference_of_rates,
    mean_interval,
    ratio_of_rates,
    wilson,
)
from resilient_heads.statistics.planning import bonferroni, holm, margin_of_error, sample_size
from resilient_heads.statistics.sample import Sample
from resilient_heads.statistics.weighted import weighted_mean, weighted_rate

__all__ = [
    "Estimate",
    "Sample",
    "bonferroni",
    "clopper_pearson",
    "cross_entropy",
    "delta_loss",
    "difference_of_rates",
    "fit_rate",
    "holm",
    "margin_of_error",
    "mean_interval",
    "ratio_of_rates",
    "sample_size",
    "top2diff",
    "weighted_mean",
    "weighted_rate",
    "wilson",
]
