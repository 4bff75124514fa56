"""Run a policy in environments and keep what happened."""
