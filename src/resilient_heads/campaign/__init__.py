"""Many faults: plan them, run them, judge them, sum them up."""
