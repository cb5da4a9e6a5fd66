"""Methods and their peers under one protocol: `recame bench PLAN.yaml`."""
