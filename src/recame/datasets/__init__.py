"""Public long-tailed sets, and the generated one."""
