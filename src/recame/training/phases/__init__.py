"""The phases of a run: probe, fine-tuning, new heads; and the choice of the one to keep."""
