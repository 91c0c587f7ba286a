"""Number formats and bit masks."""
