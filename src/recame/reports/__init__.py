"""Evidence about a finished run: its figures on a split, and the report that people read."""
