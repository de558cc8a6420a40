"""What is seen while something is computed."""
