"""Tables and plots of campaign results."""

from resilient_heads.report.plots import plot_layers
from resilient_heads.report.tables import comparison_table, layer_table, table_notes

__all__ = ["comparison_table", "layer_table", "plot_layers", "table_notes"]
