"""Showing what a model saw and answered. NumPy, SciPy and Matplotlib's colour maps only."""
