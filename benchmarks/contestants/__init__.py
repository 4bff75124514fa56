"""The contestants of `peers.py`: each one's own loop in a process of its own, see `meter`."""
