"""Export a finished run as a bundle, which needs no torch."""
