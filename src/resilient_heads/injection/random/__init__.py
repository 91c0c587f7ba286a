"""Random draws that depend on the seed, a stream's name and the trial's number alone."""
