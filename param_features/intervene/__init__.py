"""Editing weights along features: steering, ablating, exporting and training coefficients."""
