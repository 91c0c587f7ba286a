"""Which faults a campaign injects, and how many at each site."""
