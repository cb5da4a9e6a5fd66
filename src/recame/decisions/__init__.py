"""From scores to decisions: calibration, thresholds, class prior of a lot; works on arrays only."""
