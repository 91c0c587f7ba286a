"""Which tensors of a model faults can reach, and how."""
