"""What runs leave in folders, and how it is read again."""
