"""From trials to rates with intervals, and when a rate is known well enough to stop."""
