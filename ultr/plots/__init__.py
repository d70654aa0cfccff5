"""Figures of propensities, calibration and comparisons, drawn with matplotlib where that is installed."""
