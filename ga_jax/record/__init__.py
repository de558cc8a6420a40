"""What outlives a process: traces, files, parameters, checkpoints."""
