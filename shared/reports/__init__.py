"""Figures, and the HTML report that holds them."""
