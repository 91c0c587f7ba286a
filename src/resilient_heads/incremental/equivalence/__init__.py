"""Checks that an operation gives the same bits for fewer images, or on a window."""
