"""Tables and plots of campaigns."""

from resilient_heads.report.plots import plot_layers
from resilient_heads.report.tables import comparison_table, layer_table

__all__ = [
    "comparison_table",
    "layer_table",
    "plot_layers",
]
