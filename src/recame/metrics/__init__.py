"""Metrics with intervals from predictions; a rare class counts as much as a frequent one."""
