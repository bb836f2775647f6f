"""Showing what a model saw, what its answer rests on, and what it answered."""
