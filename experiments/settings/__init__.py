"""What may be set, what goes together, what --help says of it."""
