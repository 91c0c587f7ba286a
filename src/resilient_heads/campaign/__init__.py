"""Many faults: golden runs, trials, outcomes, results, comparison."""
