"""The phases of a run: probe, fine-tuning, new heads; and which of them is kept."""
