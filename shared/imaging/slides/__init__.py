"""Whole slides: opened, measured in micrometres, and read by region at any resolution."""

from shared.imaging.slides.finding import SLIDE_SUFFIXES, find_slides
from shared.imaging.slides.opening import open_slide
from shared.imaging.slides.slide import Level, Slide, UnreadableRegion

__all__ = ["SLIDE_SUFFIXES", "Level", "Slide", "UnreadableRegion", "find_slides", "open_slide"]
