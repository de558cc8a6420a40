"""What a report is made of; `experiments.report` writes it."""
