"""Random draws indexed by trial number."""
