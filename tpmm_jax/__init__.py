"""Iterative preference optimisation in JAX."""
