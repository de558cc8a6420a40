"""Benchmarks: ratios measured side by side, medians of several rounds."""
