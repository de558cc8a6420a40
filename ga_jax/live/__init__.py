"""Real asynchrony: one server, whoever its workers are."""
