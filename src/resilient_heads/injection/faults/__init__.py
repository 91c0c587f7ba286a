"""Faults as frozen values: which tensor, which elements, what happens to them."""
