"""A campaign's choices, its record, its result, and the files that keep them."""
