"""The fault-free side of a campaign: data, golden run, ranges, environment."""
