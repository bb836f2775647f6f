"""Parity with published programs: runs fixtures (names, shapes, a seed, and what the published program answered) through this code."""
