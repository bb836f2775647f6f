"""What a prediction is worth: overlap, distance, detection, calibration, and intervals over cases. NumPy and SciPy only."""
