"""The run, and only the run: plan, probe, fine-tune, keep; or a student of a finished one."""
