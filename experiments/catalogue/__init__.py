"""The named methods, and what they are made of."""
