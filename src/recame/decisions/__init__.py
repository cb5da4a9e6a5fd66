"""Scores -> decisions: calibration, thresholds, the prior of a lot; from arrays alone."""
