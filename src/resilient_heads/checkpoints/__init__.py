"""Weights in files: what a file is, and which tensors in it are a model's."""
