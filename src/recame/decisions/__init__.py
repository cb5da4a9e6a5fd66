"""Scores -> decisions: calibration and thresholds, from arrays alone."""
