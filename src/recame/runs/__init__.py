"""What the stages pass on to each other: the run folder and the table of predictions."""
