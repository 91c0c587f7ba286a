"""Sentences that describe classes: load, match, generate."""
