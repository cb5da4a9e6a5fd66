"""Training of a run: plan, probe, fine-tune, select a phase; or a student of a finished run."""
