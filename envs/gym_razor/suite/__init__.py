"""The table suite: world, scene, tasks, and one environment at a time."""
