"""Synthetic samples whose truth is known exactly, one module per modality: for demos, tests and teaching, with nothing to download."""
