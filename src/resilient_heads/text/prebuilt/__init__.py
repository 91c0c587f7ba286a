"""Prebuilt class embeddings: find, build, verify, publish."""
