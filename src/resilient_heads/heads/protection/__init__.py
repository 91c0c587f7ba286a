"""Heads that hold their computation against bounds, sums, or itself."""
