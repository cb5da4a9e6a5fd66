"""A finished run -> a bundle, which needs no torch."""
