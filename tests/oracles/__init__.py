"""Formulas in float64 NumPy, written from the papers; no jax here."""
