"""What is to be computed, whoever computes it."""
