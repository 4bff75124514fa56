"""A LeRobot policy as something that acts, has densities and trains."""
