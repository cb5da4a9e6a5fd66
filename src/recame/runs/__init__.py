"""What the stages leave to each other: the run folder and the table of predictions."""
