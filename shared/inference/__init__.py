"""Predictors, and running them over many inputs."""
