"""One fault: what it is, where it goes, how it is written and verified."""
