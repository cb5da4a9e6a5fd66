"""A plan's jobs, each done once, whatever is interrupted."""
