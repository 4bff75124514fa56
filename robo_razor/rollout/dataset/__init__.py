"""Demonstrations on disk, as a LeRobotDataset v3: checked, then read into memory."""
