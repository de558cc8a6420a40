"""Compiled shapes of plain formulas: nothing here knows a method."""
