"""Runtimes: where time, devices and processes exist."""
