"""Images on disk -> `Batch`."""
