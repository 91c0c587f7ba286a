"""Heads that no flip gets through."""
