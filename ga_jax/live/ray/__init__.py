"""Workers and shards that are processes of a Ray cluster."""
