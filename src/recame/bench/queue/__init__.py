"""The queue of a plan's jobs: each job is done once, even if processes are interrupted."""
