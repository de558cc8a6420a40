"""What every command shares: flags, its start, its failures."""
