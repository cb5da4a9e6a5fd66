"""Predictions -> numbers with intervals, in which a rare class weighs as much as a frequent one."""
