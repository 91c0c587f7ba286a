"""Run the part of a model again that comes after one of its tensors, bit for bit."""
