"""Who computes a trace: the same meaning, at other speeds."""
