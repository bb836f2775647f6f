"""Fovea's apps: one room per model family. No app imports another."""
