"""Segmenting volumes, from labelled files to a report: what the apps for MRI have in common, whatever their network."""
