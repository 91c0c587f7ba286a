"""Number formats that torch has no dtype for: encode to integer words, decode to float64."""
