"""One fault: formats, bits, sites, and the hooks that flip them. Knows nothing of text."""
