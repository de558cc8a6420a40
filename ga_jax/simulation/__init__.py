"""A virtual clock, and every run the same twice."""
