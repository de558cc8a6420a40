"""What a worker does, and on which devices."""
