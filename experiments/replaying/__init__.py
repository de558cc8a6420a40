"""A finished run computed again from its record, and compared with it."""
