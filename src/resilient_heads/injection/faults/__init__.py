"""Faults as frozen values."""
