"""Architectures side by side at one budget: the same parameters, data, and tokens or seconds."""
