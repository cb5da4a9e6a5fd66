"""Compare methods under one protocol: `recame bench PLAN.yaml`."""
