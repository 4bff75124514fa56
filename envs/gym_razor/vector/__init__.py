"""Many environments in worker processes, stepped by chunks of actions."""
