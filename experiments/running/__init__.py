"""One setting, run and summed up."""
