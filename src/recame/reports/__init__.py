"""Evaluate a finished run on a split, and write its report."""
