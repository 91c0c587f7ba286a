"""What campaigns return: trials, figures with their intervals, comparisons, exhaustive counts, repeated trials."""

from resilient_heads.campaign.analysis.compare import Comparison, Improvement, LayerDifference
from resilient_heads.campaign.exhaustive.exhaustive import ExhaustiveResult, TensorCounts
from resilient_heads.campaign.figures.summary import BitSummary, Figures, ScopeSummary, SiteSummary
from resilient_heads.campaign.golden.golden_run import GoldenRun
from resilient_heads.campaign.result.results import Summary
from resilient_heads.campaign.run.replay import ReplayedTrial
from resilient_heads.campaign.trials.columns import CampaignSite, Trials

__all__ = [
    "BitSummary",
    "CampaignSite",
    "Comparison",
    "ExhaustiveResult",
    "Figures",
    "GoldenRun",
    "Improvement",
    "LayerDifference",
    "ReplayedTrial",
    "ScopeSummary",
    "SiteSummary",
    "Summary",
    "TensorCounts",
    "Trials",
]
