"""Training over Lightning: one call, one run folder."""
