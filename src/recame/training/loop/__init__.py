"""The fine-tuning loop: its step, its schedule, its time budget."""
